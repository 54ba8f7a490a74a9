"""A server for the tests of ``freeze-proxy run`` and ``attach``: small, quick to start, and told by words what to do.

    python -I -S server.py [WORD…]

It listens on 127.0.0.1:$PORT and answers every request with 200 and what its path asks for. Words:
``v6`` listen on ::1 instead · ``handle=EXIT`` print a line for every signal, and exit so at TERM, INT and QUIT ·
``tick=FILE`` append a byte to a file every 5 ms · ``burn`` use CPU in the background · ``workers=N`` fork N processes
that serve too · ``idlers=N`` fork N that do nothing · ``forking`` fork short-lived children without end ·
``daemonise`` go away from whoever started it · ``after=SECONDS`` before it listens · ``never`` listen ·
``dies=SECONDS`` after that, with exit code 3 · ``unready=FILE`` answer /healthz with 503 while there is no such file ·
``hangs=FILE`` likewise, with nothing · ``stopped`` fork a child that stops itself · ``deaf`` to SIGTERM ·
``nest=DIR`` a child of it in a cgroup of its own there.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

WORDS = dict(word.partition("=")[::2] for word in sys.argv[1:])


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # it may be closed, or be the socket that took its place
        os.write(1, f"{text}\n".encode())


def answer(path: str) -> bytes | None:
    if path == "/healthz" and "unready" in WORDS and not os.path.exists(WORDS["unready"]):
        return b"HTTP/1.1 503 Not Yet\r\nContent-Length: 0\r\n\r\n"
    if path == "/healthz" and "hangs" in WORDS and not os.path.exists(WORDS["hangs"]):
        return None
    body = path
    if path == "/pid":
        body = str(os.getpid())
    elif path == "/slow":
        time.sleep(0.5)
    elif path.startswith("/busy"):
        until = time.process_time() + float(path[5:])
        while time.process_time() < until:
            pass
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def talk(connection: socket.socket) -> None:
    with connection:
        unread = b""
        while True:
            while b"\r\n\r\n" not in unread:
                try:
                    data = connection.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                unread += data
            head, _, unread = unread.partition(b"\r\n\r\n")
            said = answer(head.split()[1].decode())
            if said is None:
                time.sleep(3600)
            else:
                connection.sendall(said)


def serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


def on_signal(number: int, _frame: object) -> None:
    say(f"signal {number} {time.monotonic()}")
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        os._exit(int(WORDS["handle"]))


def tick(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        os.write(file, b".")
        time.sleep(0.005)


def burn() -> None:
    while True:
        sum(range(10_000))
        time.sleep(0.0005)


def main() -> None:
    if "daemonise" in WORDS:
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
    if "deaf" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "handle" in WORDS:
        ours = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT}
        for number in ours:
            signal.signal(number, on_signal)
    if "tick" in WORDS:
        threading.Thread(target=tick, args=(WORDS["tick"],), daemon=True).start()
    if "burn" in WORDS:
        threading.Thread(target=burn, daemon=True).start()
    if "stopped" in WORDS and not os.fork():
        os.kill(os.getpid(), signal.SIGSTOP)
        say("went on")
        time.sleep(3600)
    if "nest" in WORDS:
        os.mkdir(WORDS["nest"])
        if not os.fork():
            with open(WORDS["nest"] + "/cgroup.procs", "w") as file:
                file.write("0")
            time.sleep(3600)
    for _ in range(int(WORDS.get("idlers", 0))):
        if not os.fork():
            time.sleep(3600)
    time.sleep(float(WORDS.get("after", 0)))
    if "dies" in WORDS:

        def die() -> None:
            time.sleep(float(WORDS["dies"]))
            os._exit(3)

        threading.Thread(target=die, daemon=True).start()
    if "never" in WORDS:
        time.sleep(3600)
    family, host = (socket.AF_INET6, "::1") if "v6" in WORDS else (socket.AF_INET, "127.0.0.1")
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(os.environ["PORT"])))
    listener.listen(128)
    for _ in range(int(WORDS.get("workers", 0))):
        if not os.fork():
            serve(listener)
    if "forking" in WORDS:

        def fork() -> None:
            while True:
                child = os.fork()
                if not child:
                    time.sleep(0.002)
                    os._exit(0)
                os.waitpid(child, 0)

        threading.Thread(target=fork, daemon=True).start()
    say(f"serving {os.getpid()}")
    serve(listener)


main()
