"""Ports of the loopback."""

import socket

from tests.support.wait import until

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def await_port(port: int, within: float = 20.0) -> None:
    """Return once somebody listens there."""
    until(lambda: answers(port), f"somebody listens on port {port}", within, every=0.02)
