"""The token by which a pod says who it is: a file that the kubelet replaces while the pod runs."""

import posix

from freeze_proxy.control.messages import MOST_TOKEN

_VISIBLE = bytes(range(0x21, 0x7F))


class NoToken(Exception):
    """There is no token to be had; the text is a sentence for the user."""


class TokenFile:
    """Reads the file again whenever it is another one than it was: one stat(2) each time it is asked."""

    __slots__ = ("_path", "_seen", "last")

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: object = None
        self.last: bytes | None = None
        """The last token that was read, for when there is none to be had and an old one is better than none."""

    def read(self) -> bytes:
        """The token, as bytes that can stand in a header field. Raises ``NoToken``."""
        try:
            found = posix.stat(self._path)
            seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen or self.last is None:
                token = self._content()
                self.last, self._seen = token, seen
        except OSError as error:
            self._seen = None
            raise NoToken(
                f"The token file {self._path} cannot be read ({error.strerror}); is the token volume mounted?"
            ) from error
        return self.last

    def _content(self) -> bytes:
        # A path that leads to a pipe must not hold up the loop.
        fd = posix.open(self._path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        try:
            token = posix.read(fd, MOST_TOKEN + 2).strip()
        finally:
            posix.close(fd)
        if not token or len(token) > MOST_TOKEN or token.strip(_VISIBLE):
            self._seen = None
            raise NoToken(f"The file {self._path} does not hold a token.")
        return token
