"""The server that the wake benchmark freezes: ``python3 -I -S wake_server.py``, on the port in ``PORT``, at ``HOST``.

One process, one thread, one answer to everything; each read is taken for one whole request.
"""

import _socket
import os
import select
import signal

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nHello world\n"


def main() -> None:
    """Serve until told to end."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])))
    listener.listen(128)
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # what is handled waits while this is frozen
    while True:
        for fd, _event in poll.poll():
            if fd == listener.fileno():
                new, _address = listener._accept()  # type: ignore[attr-defined] # what socket.accept is made of
                poll.register(new, select.EPOLLIN)
                continue
            try:
                if os.read(fd, 65536):
                    os.write(fd, ANSWER)
                    continue
            except OSError:
                pass  # the client has gone; so is the connection
            os.close(fd)


main()
