"""What a sidecar has to say, one JSON object a line, on stderr.

Nobody waits for a log: a line that cannot be written at once is dropped, and the next one that can says how many were.
"""

import posix
import time

LEVELS = ("debug", "info", "warning", "error")

_STDERR = 2


class Log:
    """Writes what is at least as grave as ``level``, one of ``LEVELS``, to descriptor ``fd``.

    The descriptor is made non-blocking: a reader of the log that has stopped reading must not stop the pod.
    """

    __slots__ = ("_fd", "_lost", "_rest", "_wanted")

    def __init__(self, level: str = "info", fd: int = _STDERR) -> None:
        self._wanted = LEVELS[LEVELS.index(level) :]
        self._fd = fd
        self._lost = 0
        self._rest = b""  # of a line that was cut
        try:
            posix.set_blocking(fd, False)
        except OSError:
            pass  # It is closed: nothing will be written.

    def debug(self, message: str, **facts: object) -> None:
        """What happens all the time."""
        self._write("debug", message, facts)

    def info(self, message: str, **facts: object) -> None:
        """What happens once in a pod's life, or seldom."""
        self._write("info", message, facts)

    def warning(self, message: str, **facts: object) -> None:
        """Somebody should look at this; the pod serves all the same."""
        self._write("warning", message, facts)

    def error(self, message: str, **facts: object) -> None:
        """Somebody has to act."""
        self._write("error", message, facts)

    def _write(self, level: str, message: str, facts: "dict[str, object]") -> None:
        if level not in self._wanted:
            return
        if self._lost:
            facts["lines_lost"] = self._lost
        line = self._rest + _line(level, message, facts)
        try:
            sent = posix.write(self._fd, line)
        except OSError:
            self._lost += 1
            return
        self._lost = 0
        self._rest = line[sent:]


def _line(level: str, message: str, facts: "dict[str, object]") -> bytes:
    now = time.time()
    parts = time.gmtime(now)
    stamp = (
        f"{parts[0]:04}-{parts[1]:02}-{parts[2]:02}T{parts[3]:02}:{parts[4]:02}:{parts[5]:02}.{int(now % 1 * 1000):03}Z"
    )
    members = {"time": stamp, "level": level, "message": message} | facts
    return ("{" + ", ".join(f"{_quoted(name)}: {_value(value)}" for name, value in members.items()) + "}\n").encode()


def _value(value: object) -> str:
    if value is None or value is True or value is False:
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value - value == 0:  # JSON has no infinity
        return repr(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """A JSON string, readable where that is possible."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
