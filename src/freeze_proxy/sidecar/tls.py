"""TLS for probes of https servers. Imported where there is one: it is six megabytes.

As the kubelet does, it looks at no certificate (Kubernetes documentation, "HTTP probes").
"""

import ssl


class Tls:
    """One connection's TLS, of bytes in and bytes out. The server's name is ``host``, if it is one."""

    __slots__ = ("_in", "_out", "_session")

    def __init__(self, host: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._in, self._out, server_hostname=host or None)

    def exchange(self, received: bytes, request: bytes) -> "tuple[bytes, bytes, bool]":
        """Take what has come; returns what it says in clear, what is to be sent, and whether the request is in that.

        ``request`` is sent as soon as the handshake is over. Raises ``OSError`` (``ssl.SSLError``) where that fails.
        """
        self._in.write(received)
        said, sent = b"", False
        try:
            self._session.do_handshake()
            if request:
                self._session.write(request)
                sent = True
            while piece := self._session.read(16384):
                said += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            pass
        return said, self._out.read(), sent
