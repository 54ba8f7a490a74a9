"""What the freezers' benchmark freezes: ``python3 -I -S freezer_target.py THREADS BUSY``.

A process of so many threads, the first of which echoes bytes from standard input to standard output; of the others,
``BUSY`` compute without end and the rest sleep.
"""

import _thread
import os
import sys
import zlib


def _sleep() -> None:
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.acquire()


def _compute() -> None:
    data = bytes(256 * 1024)
    while True:
        zlib.crc32(data)  # without the interpreter's lock, so that all of them compute at the same time


def main() -> None:
    """Start the threads, say so with one byte, then echo."""
    threads, busy = int(sys.argv[1]), int(sys.argv[2])
    _thread.stack_size(64 * 1024)
    for number in range(threads - 1):
        _thread.start_new_thread(_compute if number < busy else _sleep, ())
    os.write(1, b"!")
    while data := os.read(0, 1):
        os.write(1, data)


main()
