"""The process above the daemon: when that dies, or stops to show that it lives, it thaws what is written down.

It does nothing else, so that there is little that could end it; if it is ended all the same, the daemon sees that,
thaws everything and leaves. Where both are killed at once, the next start reads the same journal. The daemon is not
started again here: whoever runs this (the kubelet, systemd) does that, and shows that it was necessary.
"""

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable

from freeze_proxy import logs
from freeze_proxy.daemon.journal import thaw_all

PULSE_EVERY = 1.0
_FIRST_PULSE, _NO_PULSE = 60.0, 10.0
"""Seconds without a sign of life after which a daemon that is starting, or has started, is taken to hang."""
_AGAIN = (0.1, 0.3, 1.0, 3.0)
"""Seconds before each further try to thaw what could not be thawed; after the last one it is left to the next start."""
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)


class Line:
    """What a daemon has of its supervisor: ``beat`` tells that it lives, ``fileno`` is readable when that has died."""

    def __init__(self, life: int, pulse: int) -> None:
        self._life = life
        self._pulse = pulse

    def fileno(self) -> int:
        """At its end when the supervisor is."""
        return self._life

    def beat(self) -> None:
        """To be called every ``PULSE_EVERY`` seconds."""
        with contextlib.suppress(OSError):
            os.write(self._pulse, b".")


def supervise(serve: Callable[[Line], int], state_dir: str, level: str) -> int:
    """Run ``serve`` in a child process, and return its exit code (128 + n for signal n).

    To be called before there is any thread.
    """
    life, life_kept = os.pipe()
    pulse_heard, pulse = os.pipe()
    # Signals that come between the fork and the handlers' being set wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        os.close(life_kept)
        os.close(pulse_heard)
        os.set_blocking(pulse, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        code = 1
        try:
            code = serve(Line(life, pulse))
        except BaseException:  # whatever it is, it must not go on in the supervisor's place
            _log.exception("the daemon has made a mistake, and ends")
        finally:
            os._exit(code)
    os.close(life)
    os.close(pulse)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    logs.set_up(level)
    hung = _hung(pulse_heard)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    thawed, troubles = thaw_all(state_dir)
    for pause in _AGAIN:
        if not troubles:
            break
        time.sleep(pause)  # a runtime may be on its way back
        more, troubles = thaw_all(state_dir)
        thawed += more
    if hung or code < 0 or thawed or troubles:
        how = "hung, and was killed" if hung else f"ended by signal {-code}" if code < 0 else f"ended with {code}"
        facts = {"how": how, "thawed": thawed, "troubles": troubles}
        _log.error("the daemon has ended, and what it had frozen was thawed", extra={"facts": facts})
    return code if code >= 0 else 128 - code


def _hung(pulse: int) -> bool:
    """Waits until the daemon has ended; returns early, with true, when it gives no sign of life."""
    poll = select.poll()
    poll.register(pulse, select.POLLIN)
    patience = _FIRST_PULSE
    while poll.poll(patience * 1e3):
        if not os.read(pulse, 4096):
            return False
        patience = _NO_PULSE
    return True
