"""The certificate that is served: it can be replaced while connections are open. Nothing is written to a disk."""

import os
import ssl
from datetime import datetime

from freeze_proxy.webhook import certs


class Tls:
    """``context`` is for the server, ``end`` is when the certificate ends: nothing before the first is loaded."""

    def __init__(self) -> None:
        self.context = _context()
        self.end: datetime | None = None

    def load(self, certificate: bytes, key: bytes) -> None:
        """Serve this certificate (PEM, with what it was signed by) to whoever connects from now on.

        Raises ``ValueError`` with a sentence; what was served before stays.
        """
        try:
            # Tried elsewhere first: a failure half-way would leave a certificate with another's key.
            _load(_context(), certificate, key)
            end = certs.end(certificate)
            _load(self.context, certificate, key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or type(error).__name__
            raise ValueError(
                f"The certificate and its key cannot be used ({reason}): both must be PEM, and belong together."
            ) from None
        self.end = end

    def good(self, now: datetime) -> bool:
        """Whether there is a certificate that has not ended."""
        return self.end is not None and now < self.end


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL reads files only: these are in memory, and only this process can open them."""
    files = []
    try:
        for content in (certificate, key):
            files.append(os.memfd_create("certificate", os.MFD_CLOEXEC))
            os.write(files[-1], content)
        paths = [f"/proc/self/fd/{file}" for file in files]
        context.load_cert_chain(paths[0], paths[1], password=_no_password)
    finally:
        for file in files:
            os.close(file)


def _no_password() -> str:
    """Else OpenSSL would ask on the terminal."""
    return ""
