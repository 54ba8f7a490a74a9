"""Addresses to listen on and to reach a server at, and what can be wrong with them."""

import _socket
import errno
import socket

from freeze_proxy.local.options import Failure
from freeze_proxy.settings import written
from freeze_proxy.tcp import Address, listen

_LOOPBACKS = ("127.0.0.1", "::1")
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


def resolve(address: Address) -> list[Address]:
    """All IP addresses of an address that may be a name. Raises ``Failure``."""
    host, port = address
    if host == "localhost":
        return [(loopback, port) for loopback in _LOOPBACKS]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Failure(f"{host} is neither an address nor a name that is known here: {reason}.") from error
    return list(dict.fromkeys((str(sockaddr[0]), port) for _, _, _, _, sockaddr in found))


def open_listener(address: Address) -> _socket.socket:
    """Listens. Raises ``Failure`` with what to do about it."""
    (host, port), where = resolve(address)[0], written(address)
    try:
        return listen((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sentence = f"{where} is in use already: choose another address with --listen, or end what listens there."
        elif error.errno == errno.EADDRNOTAVAIL:
            sentence = f"{where} cannot be listened on: {host} is not an address of this machine."
        elif error.errno == errno.EACCES:
            sentence = f"{where} cannot be listened on by this user: ports below 1024 are for root."
        else:
            sentence = f"{where} cannot be listened on: {error.strerror}."
        raise Failure(sentence) from error


def places(port: int) -> list[Address]:
    """Where a server that listens on this port of this machine can be reached."""
    return [(loopback, port) for loopback in _LOOPBACKS]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """Whether somebody listens on this port of this machine."""
    for host, _ in places(port):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return True
    return False


def leads_to(listener: _socket.socket, target: Address) -> bool:
    """Whether whoever connects to the target reaches this listener."""
    host, port = listener.getsockname()[:2]
    return bool(port == target[1] and (host == target[0] or host in _ANY))
