"""Finding the address behind a name, without holding up the loop: the resolver blocks, so it gets a thread."""

import _socket
import posix

from freeze_proxy.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def is_address(host: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, and no name."""
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def resolve(loop: Loop, name: str, found: "Callable[[str, str], None]") -> None:
    """Calls ``found`` on the loop with the address behind this name, or with nothing and the reason why there is none.

    Raises ``OSError`` where there is no descriptor or thread to be had.
    """
    import _thread  # only where there is a name to be resolved

    answers: list[tuple[str, str]] = []
    ours, theirs = posix.pipe2(posix.O_CLOEXEC)

    def ask() -> None:
        try:
            # As bytes: a str would load the codec for international names, a megabyte.
            first = _socket.getaddrinfo(name.encode(), None, 0, _socket.SOCK_STREAM)[0]
            answers.append((str(first[4][0]), ""))
        except Exception as error:  # whatever it is, somebody waits for an answer
            answers.append(("", str(error.args[-1] if error.args else error)))
        finally:
            posix.close(theirs)  # which the loop sees

    def answered(_events: int) -> None:
        loop.forget(ours)
        posix.close(ours)
        found(*answers[0])

    try:
        _thread.start_new_thread(ask, ())
    except RuntimeError as error:
        posix.close(ours)
        posix.close(theirs)
        raise OSError(0, f"no thread for the resolver ({error})") from error
    loop.watch(ours, READ, answered)
