"""Whatever of freeze-proxy is killed: the server does not stay frozen, and nothing stays behind."""

import contextlib
import http.client
import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from freeze_proxy.freezers import cgroup
from tests.support.proxies import Proxies, Proxy, marked
from tests.support.running import process_state
from tests.support.wait import until

A_SECOND = 1.0
TRIES = 24


def kill_and_measure(proxy: Proxy) -> float:
    """SIGKILL to freeze-proxy; returns the seconds until nothing is left of it."""
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    return proxy.assert_nothing_left(within=A_SECOND)


def test_killed_while_the_server_is_frozen(proxies: Proxies, freezer: str, tmp_path: Path) -> None:
    proxy = proxies.run("workers=2", "handle=0", options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    kill_and_measure(proxy)
    assert f"signal {signal.SIGTERM} " in proxy.out()  # thawed, and asked before it was made to


def test_killed_with_a_server_that_does_not_want_to_end(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("workers=2", "deaf", options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    assert kill_and_measure(proxy) > 0.3


def test_killed_in_the_midst_of_requests(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("workers=2", options=["--freezer", freezer, "--grace", "0"])
    for _ in range(20):
        proxy.get()
    kill_and_measure(proxy)


def test_killed_while_a_freeze_is_under_way(proxies: Proxies, freezer: str) -> None:
    """Two hundred processes take a while; that it was under way is seen from what the log does not say."""
    proxy = proxies.run("idlers=200", options=["--freezer", freezer, "--grace", "50ms"])
    assert proxy.start
    proxy.await_frozen()
    proxy.get()
    freezes = len(proxy.events("frozen"))
    until(lambda: _some_stand_still(proxy), "it is about to be frozen", every=0.0005)
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    proxy.assert_nothing_left(within=A_SECOND)
    assert len(proxy.events("frozen")) <= freezes + 1


def _some_stand_still(proxy: Proxy) -> bool:
    if proxy.start["freezer"] == "process":
        return process_state(proxy.server) == "T"
    control = "cgroup.freeze" if proxy.start["freezer"] == "cgroup2" else "freezer.state"
    return Path(proxy.where, control).read_text().strip() not in ("0", "THAWED")


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_killed_at_any_moment(proxies: Proxies, freezer: str) -> None:
    """From before its first line of Python to the midst of freezes and thaws."""
    random_moment = random.Random(20)
    seconds = []
    for number in range(TRIES):
        proxy = proxies.run("handle=0", options=["--freezer", freezer, "--grace", "2ms"])
        if number % 2:
            # Anywhere in the start-up, which takes about a quarter of a second.
            time.sleep(random_moment.uniform(0, 0.35))
        else:
            assert proxy.start
            until_then = time.monotonic() + random_moment.uniform(0, 0.03)
            while time.monotonic() < until_then:
                with contextlib.suppress(OSError):
                    proxy.get()
                time.sleep(random_moment.uniform(0, 0.005))
        seconds.append(kill_and_measure(proxy))
    print(f"{freezer}: nothing left after {statistics.median(seconds):.3f} s, at most {max(seconds):.3f} s")


def test_the_guard_is_killed(proxies: Proxies, freezer: str) -> None:
    """The server is ended: nobody would thaw it if freeze-proxy died now."""
    proxy = proxies.run("workers=2", options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    os.kill(proxy.guard, signal.SIGKILL)
    assert proxy.wait(3) == 125
    last = proxy.err().splitlines()
    assert "freeze-proxy: The guard process was ended by somebody; the server is not kept without it." in last
    assert "Traceback" not in proxy.err()
    proxy.assert_nothing_left()


def test_the_guard_of_a_daemon_is_killed(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("daemonise", "workers=2", options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    os.kill(proxy.guard, signal.SIGKILL)
    assert proxy.wait(3) == 125
    proxy.assert_nothing_left()


def test_both_are_killed(proxies: Proxies, freezer: str) -> None:
    """COMMAND's own process ends with the guard, except on v1, where nothing dies before it is thawed."""
    proxy = proxies.run(options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    where, server = proxy.where, proxy.server
    os.kill(proxy.pid, signal.SIGSTOP)  # so that neither has time to act on the other's death
    os.kill(proxy.guard, signal.SIGSTOP)
    os.kill(proxy.guard, signal.SIGKILL)
    os.kill(proxy.pid, signal.SIGKILL)
    proxy.wait()
    if freezer == "cgroup1":
        assert process_state(server)
        Path(where, "freezer.state").write_text("THAWED")
    until(lambda: not marked(proxy.mark), "the server has ended", A_SECOND)
    if freezer != "process":
        assert cgroup.remove(where)


def test_who_ends_all_that_is_called_freeze_proxy_does_not_end_the_guard(proxies: Proxies) -> None:
    """``pkill -9 -f freeze_proxy`` is what people do."""
    proxy = proxies.run(command=["sh", "-c", "exec python3 -m http.server --bind 127.0.0.1 $PORT"])
    assert proxy.start
    proxy.await_frozen()
    for word in (b"freeze-proxy", b"freeze_proxy"):
        named = [pid for pid in marked(proxy.mark) if word in Path("/proc", str(pid), "cmdline").read_bytes()]
        assert proxy.guard not in named
    assert Path("/proc", str(proxy.guard), "cmdline").read_bytes().startswith(b"freeze-guard of ")
    assert Path("/proc", str(proxy.guard), "comm").read_text() == "freeze-guard\n"
    kill_and_measure(proxy)


def test_the_server_is_killed_while_it_is_frozen(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run(options=["--freezer", freezer])
    assert proxy.start
    proxy.await_frozen()
    os.kill(proxy.server, signal.SIGKILL)
    if freezer == "cgroup1":
        with pytest.raises((OSError, http.client.HTTPException)):
            proxy.get()  # on v1 it dies when it is thawed
    assert proxy.wait() == 137
    proxy.assert_nothing_left()
