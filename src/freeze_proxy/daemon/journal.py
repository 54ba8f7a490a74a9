"""What is frozen, written down before it happens, so that whoever comes after a daemon that was killed can thaw it.

A directory of this daemon's own, on a file system in memory (``/run``), with one small file a container. Its first
seven bytes say ``frozen`` or ``awake``; what follows is the way to thaw it, in JSON. A transition writes the first word
only: one system call. The directory is emptied of a container when that is gone.
"""

import contextlib
import json
import logging
import os
import re
from dataclasses import asdict, dataclass

from freeze_proxy.freezers import FreezeError, Freezer, Gone
from freeze_proxy.freezers.remade import remade

_log = logging.getLogger(__name__)
_FROZEN, _AWAKE = b"frozen\n", b"awake \n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MOST = 64 * 1024


class JournalError(Exception):
    """The journal cannot be kept; the text is a sentence for whoever runs the daemon."""


@dataclass(frozen=True, slots=True)
class Record:
    """One container: whose it is, and ``way``, of which ``remade`` makes its freezer again."""

    pod: str
    namespace: str
    pod_name: str
    container: str
    id: str
    pid: int
    way: list[str]


class Entry:
    """One container's file, open."""

    __slots__ = ("_fd", "_path", "frozen", "record")

    def __init__(self, path: str, fd: int, record: Record, frozen: bool) -> None:
        self._path = path
        self._fd = fd
        self.record = record
        self.frozen = frozen

    def mark(self, frozen: bool) -> None:
        """Before a freeze, and after a thaw. Raises ``FreezeError``: what cannot be written down is not frozen."""
        if frozen != self.frozen:
            try:
                os.pwrite(self._fd, _FROZEN if frozen else _AWAKE, 0)
            except OSError as error:
                raise FreezeError(f"{self._path} cannot be written: {error.strerror}.") from error
            self.frozen = frozen

    def close(self, remove: bool = False) -> None:
        """Closes the file, and removes it where the container is gone."""
        if remove:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        os.close(self._fd)


class Journal:
    """The directory ``path``; made where it is missing. Raises ``JournalError``."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            about = os.stat(path)
            if about.st_uid != os.geteuid():
                raise JournalError(f"{path} belongs to another user: whoever owns it could have anything thawed.")
            os.chmod(path, 0o700)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(13, "it cannot be written")
        except OSError as error:
            raise JournalError(f"What is frozen cannot be written down in {path}: {error.strerror}.") from error

    def entry(self, record: Record, suffix: str = "") -> Entry:
        """A file for one container, that says it is awake. Raises ``FreezeError``.

        A container has one file for each way that it may be frozen in; ``suffix`` tells them apart.
        """
        if not _NAME.fullmatch(record.id):
            raise FreezeError(f"{record.id!r} is no container id.")
        path = os.path.join(self.path, record.id + suffix)
        draft = path + "~"
        try:
            # A reader sees all of it or nothing.
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, _AWAKE + json.dumps(asdict(record)).encode() + b"\n")
                os.rename(draft, path)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise FreezeError(f"{path} cannot be written: {error.strerror}.") from error
        return Entry(path, fd, record, False)

    def found(self) -> list[Entry]:
        """What others have left behind; what cannot be read is removed, with a word in the log."""
        entries = []
        for name in sorted(os.listdir(self.path)):
            path = os.path.join(self.path, name)
            try:
                if not _NAME.fullmatch(name):
                    os.unlink(path)  # a draft
                    continue
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    word, _, rest = os.pread(fd, _MOST, 0).partition(b"\n")
                    record = Record(**json.loads(rest))
                except BaseException:
                    os.close(fd)
                    raise
                entries.append(Entry(path, fd, record, word.strip() != b"awake"))
            except (OSError, ValueError, TypeError) as error:
                _log.warning(
                    "a file of the journal cannot be read, and is removed",
                    extra={"facts": {"path": path, "why": str(error)}},
                )
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return entries


def thaw_all(path: str) -> tuple[int, list[str]]:
    """Thaw all that a journal says is frozen: for who comes after a daemon. Never raises.

    Returns how many were thawed, and sentences about those that could not be.
    """
    thawed, troubles = 0, []
    try:
        entries = Journal(path).found()
    except (JournalError, OSError) as error:
        return 0, [str(error)]
    for entry in entries:
        try:
            if entry.frozen:
                freezer: Freezer = remade(entry.record.way)
                try:
                    freezer.thaw()
                finally:
                    freezer.close()
                entry.mark(False)
                thawed += 1
        except Gone:
            entry.close(remove=True)
            continue
        except FreezeError as error:
            troubles.append(f"{entry.record.container} of {entry.record.namespace}/{entry.record.pod_name}: {error}")
        entry.close()
    return thawed, troubles
