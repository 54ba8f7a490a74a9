"""``freeze-proxy run``: how it starts, and every way in which it cannot."""

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.support.needs import need, need_program
from tests.support.ports import LOOPBACK, await_port, free_port
from tests.support.proxies import SERVER, Proxies
from tests.support.wait import until

HOW = {"cgroup2": "/freeze-proxy-", "cgroup1": "/freeze-proxy-", "process": "the process tree below PID "}


def test_one_line_says_what_is_frozen_and_how(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run(options=["--freezer", freezer])
    start = proxy.start
    assert len(proxy.events("start")) == 1
    assert start["freezer"] == freezer
    assert HOW[freezer] in start["where"]
    assert start["where"] in start["message"]
    assert f"({freezer})" in start["message"]
    assert start["listen"] in start["message"]
    assert start["target"] in start["message"]
    assert "20 ms without a request" in start["message"]
    assert start["grace_ms"] == 20
    assert start["mode"] == "freeze"
    if freezer != "process":
        assert str(start["pid"]) in Path(start["where"], "cgroup.procs").read_text().split()
        assert str(proxy.pid) not in Path(start["where"], "cgroup.procs").read_text().split()
    assert proxy.get("/pid") == str(start["pid"]).encode()
    proxy.await_frozen()
    assert proxy.get("/again") == b"/again"
    assert proxy.end() == 143


def test_text_says_it_in_a_sentence(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--log-format", "text", "--freezer", "process"])
    until(lambda: "thaw" in proxy.err() or "frozen" in proxy.err(), "it speaks")
    first = proxy.err().splitlines()[0]
    assert re.fullmatch(
        r"freeze-proxy: http://127\.0\.0\.1:\d+ → 127\.0\.0\.1:\d+, freezing the process tree below PID \d+ "
        r"\(process\) after 20 ms without a request\.",
        first,
    )


def test_the_port_is_handed_over(proxies: Proxies) -> None:
    proxy = proxies.run()
    environment = Path("/proc", str(proxy.server), "environ").read_bytes().split(b"\0")
    assert f"PORT={proxy.start['target'].rpartition(':')[2]}".encode() in environment


def test_the_port_that_is_asked_for(proxies: Proxies) -> None:
    port = free_port()
    proxy = proxies.run(options=["--port", str(port)])
    assert proxy.start["target"] == f"127.0.0.1:{port}"
    assert proxy.get() == b"/"


def test_a_server_on_ipv6_only(proxies: Proxies) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        need(probe.connect_ex(("::1", 9)) in (0, 111), "There is no IPv6 loopback here.")
    proxy = proxies.run("v6", options=["--listen", "[::1]:0"])
    assert proxy.start["target"].startswith("[::1]:")
    assert proxy.start["listen"].startswith("[::1]:")
    with socket.create_connection(("::1", proxy.port)) as client:
        client.sendall(b"GET /six HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).endswith(b"/six")


def test_options_after_the_command_are_its_own(proxies: Proxies) -> None:
    proxy = proxies.start("run", "--listen", f"{LOOPBACK}:0", *SERVER, "--grace=1h")
    assert proxy.start["grace_ms"] == 100


@pytest.mark.parametrize("path", [None, "/healthz"])
def test_who_comes_early_is_served_when_it_is_ready(proxies: Proxies, tmp_path: Path, path: str | None) -> None:
    port, ready = free_port(), tmp_path / "ready"
    options = ["--listen", f"{LOOPBACK}:{port}"]
    words = ["after=0.5"]
    if path is not None:
        options += ["--ready-path", path]
        words = [f"unready={ready}"]
    proxy = proxies.run(*words, options=options)
    await_port(port)
    with socket.create_connection((LOOPBACK, port)) as early:
        early.sendall(b"GET /early HTTP/1.1\r\nHost: x\r\n\r\n")
        if path is not None:
            proxy.say("serving")
            early.settimeout(0.3)
            with pytest.raises(TimeoutError):
                early.recv(1000)
            assert not proxy.events()
            ready.touch()
        early.settimeout(10)
        assert early.recv(1000).endswith(b"/early")
    proxy.await_frozen()


def test_a_ready_path_that_hangs_is_tried_again(proxies: Proxies, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    proxy = proxies.run(f"hangs={ready}", options=["--ready-path", "/healthz"])
    proxy.say("serving")
    ready.touch()
    assert proxy.start
    assert proxy.get() == b"/"


# Every way in which it cannot.


def test_a_server_that_never_listens(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run("never", options=["--start-timeout", "300ms", "--freezer", freezer])
    assert proxy.wait() == 124
    assert re.fullmatch(
        r"The server at 127\.0\.0\.1:\d+ or \[::1\]:\d+ was not ready within 0\.3 s: it does not accept connections\.",
        proxy.sentence(),
    )
    proxy.assert_nothing_left()


def test_a_server_that_is_never_ready(proxies: Proxies, tmp_path: Path) -> None:
    options = ["--start-timeout", "1s", "--ready-path", "/healthz"]
    proxy = proxies.run(f"unready={tmp_path / 'never'}", options=options)
    assert proxy.wait() == 124
    assert "not ready within 1 s: it answers /healthz with 503" in proxy.sentence()
    proxy.assert_nothing_left()


def test_a_ready_path_that_is_never_answered(proxies: Proxies, tmp_path: Path) -> None:
    options = ["--start-timeout", "1s", "--ready-path", "/healthz"]
    proxy = proxies.run(f"hangs={tmp_path / 'never'}", options=options)
    assert proxy.wait() == 124
    assert "it accepts connections, but does not answer /healthz" in proxy.sentence()
    proxy.assert_nothing_left()


@pytest.mark.parametrize(
    ("ending", "code", "how"),
    [
        ("exit 0", 125, "with exit code 0"),
        ("exit 3", 3, "with exit code 3"),
        ("kill -9 $$", 137, "by signal 9"),
        ("kill $$", 143, "by signal 15"),
    ],
)
def test_a_server_that_dies_before_it_listens(proxies: Proxies, ending: str, code: int, how: str) -> None:
    proxy = proxies.run(command=["sh", "-c", ending])
    assert proxy.wait() == code
    assert proxy.sentence().startswith(f"The server ended {how} before it could be reached at 127.0.0.1:")
    proxy.assert_nothing_left()


def test_where_it_listens_is_taken(proxies: Proxies) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        where = f"{LOOPBACK}:{other.getsockname()[1]}"
        proxy = proxies.run(options=["--listen", where])
        assert proxy.wait() == 125
    assert proxy.sentence() == (
        f"{where} is in use already: choose another address with --listen, or end what listens there."
    )
    proxy.assert_nothing_left()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_the_servers_port_is_taken(proxies: Proxies, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        port = other.getsockname()[1]
        proxy = proxies.run(options=["--port", str(port)])
        assert proxy.wait() == 125
    assert f"Port {port}, where the server is to listen, is in use already" in proxy.sentence()


def test_the_servers_port_is_our_own(proxies: Proxies) -> None:
    port = free_port()
    proxy = proxies.run(options=["--port", str(port), "--listen", f"0.0.0.0:{port}"])
    assert proxy.wait() == 125
    assert f"Port {port} cannot be both" in proxy.sentence()


@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ("192.0.2.1:8080", "192.0.2.1:8080 cannot be listened on: 192.0.2.1 is not an address of this machine."),
        ("no-such-host.invalid:8080", "no-such-host.invalid is neither an address nor a name that is known here: "),
        ("[::fish]:80", "::fish is neither an address nor a name that is known here: "),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080 cannot be listened on: 2001:db8::1 is not an address of this"),
    ],
)
def test_where_it_cannot_listen(proxies: Proxies, listen: str, says: str) -> None:
    proxy = proxies.run(options=["--listen", listen])
    assert proxy.wait(30) == 125
    assert proxy.sentence().startswith(says)


def test_a_name_to_listen_on(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--listen", "localhost:0"])
    assert proxy.start["listen"].startswith("127.0.0.1:")


def test_no_such_command(proxies: Proxies, freezer: str) -> None:
    proxy = proxies.run(command=["no-such-command"], options=["--freezer", freezer])
    assert proxy.wait() == 127
    assert proxy.sentence() == "no-such-command: there is no such command."
    proxy.assert_nothing_left()


def test_a_name_that_could_be_taken_for_words_of_the_guard(proxies: Proxies) -> None:
    name = 'no\nsuch "command"\n["ended", 0]\udcff'
    proxy = proxies.run(command=[name])
    assert proxy.wait() == 127
    assert proxy.sentence() == f"{name!r}: there is no such command."


def test_a_command_whose_directory_is_gone(proxies: Proxies, tmp_path: Path) -> None:
    proxy = proxies.run(command=[str(tmp_path / "gone" / "server")])
    assert proxy.wait() == 127
    assert proxy.sentence().endswith("/gone/server: there is no such command.")


def test_a_working_directory_that_is_gone(proxies: Proxies, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    leave = ["sh", "-c", f'cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec "$@"', "sh"]
    proxy = proxies.run(wrap=leave)
    assert proxy.get() == b"/"
    assert proxy.end() == 143


@pytest.mark.parametrize(
    ("mode", "content", "says"),
    [
        (0o644, "#!/bin/sh\n", "cannot be run: Permission denied."),
        (0o755, "#!/no/such/interpreter\n", "cannot be run: its interpreter is not there."),
        (0o755, "\x7fELF nonsense", "cannot be run: Exec format error."),
    ],
)
def test_a_command_that_cannot_be_run(proxies: Proxies, tmp_path: Path, mode: int, content: str, says: str) -> None:
    command = tmp_path / "command"
    command.write_text(content)
    command.chmod(mode)
    proxy = proxies.run(command=[str(command)])
    assert proxy.wait() == 126
    assert proxy.sentence() == f"{command} {says}"
    proxy.assert_nothing_left()


def test_a_directory_is_no_command(proxies: Proxies, tmp_path: Path) -> None:
    proxy = proxies.run(command=[str(tmp_path)])
    assert proxy.wait() == 126
    assert proxy.sentence().endswith("cannot be run: Permission denied.")


def test_a_report_for_which_there_is_no_directory(proxies: Proxies, tmp_path: Path) -> None:
    report = tmp_path / "no" / "report.json"
    proxy = proxies.run(options=["--report", str(report)])
    assert proxy.wait() == 125
    assert proxy.sentence() == f"The report {report} cannot be written: there is no {report.parent}."
    proxy.assert_nothing_left()


def test_a_report_that_cannot_be_written_in_the_end(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--report", "/dev/full", "--log-format", "json"])
    assert proxy.start
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 125
    assert proxy.err().splitlines()[-1] == (
        "freeze-proxy: The report /dev/full cannot be written: No space left on device."
    )
    proxy.assert_nothing_left()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "Missing argument 'COMMAND"),
        (["run", "--grace", "soon", "--", "true"], "'soon' is not a duration"),
        (["run", "--listen", "8080", "--", "true"], "'8080' is not an address"),
        (["run", "--port", "0", "--", "true"], "--port"),
        (["run", "--ready-path", "health z", "--", "true"], "is not a path"),
        (["run", "--mode", "sleep", "--", "true"], "--mode"),
        (["attach", "--target", "127.0.0.1:1"], "one of --pid, --cgroup, --docker and --containerd"),
        (
            ["attach", "--target", "127.0.0.1:1", "--pid", "2", "--cgroup", "/x"],
            "one of --pid, --cgroup, --docker and --containerd",
        ),
        (["attach", "--pid", "2"], "--target"),
    ],
)
def test_wrong_usage(proxies: Proxies, arguments: list[str], says: str) -> None:
    proxy = proxies.start(*arguments)
    assert proxy.wait() == 2
    assert says in proxy.err()
    assert "Traceback" not in proxy.err()


def test_out_of_descriptors(proxies: Proxies) -> None:
    need_program("prlimit", "util-linux")
    proxy = proxies.run(wrap=["prlimit", "--nofile=6:6"])
    assert proxy.wait() == 125
    assert "Too many open files" in proxy.sentence()
    proxy.assert_nothing_left()


def test_the_way_to_throttle(proxies: Proxies) -> None:
    proxy = proxies.run(options=["--mode", "throttle", "--freezer", "process"])
    assert proxy.wait() == 125
    assert proxy.sentence() == "A process tree cannot be throttled, only a cgroup can."


def test_two_at_once_keep_apart(proxies: Proxies) -> None:
    first, second = proxies.run(), proxies.run()
    first.await_frozen()
    second.await_frozen()
    assert first.where != second.where
    first.get()
    first.end()
    assert second.frozen()
    assert second.get() == b"/"
