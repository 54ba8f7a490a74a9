"""Reading what programs have written into the ring that they share.

The kernel's ``Documentation/bpf/ringbuf.rst``: one page with the reader's position, one with the writers', then the
data, mapped twice in a row so that no record is torn. A record begins with its length, whose upper bits say that it is
still being written, or is to be left out.
"""

import mmap

from freeze_proxy.ambient.bpf import RINGBUF, Map

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_RECORD_HEADER = 8


class Ring(Map):
    """A ring of ``size`` bytes, a power of two and whole pages. ``fd`` is readable when the reader is to be woken."""

    def __init__(self, size: int) -> None:
        super().__init__(RINGBUF, 0, 0, size)
        self.size = size
        page = mmap.PAGESIZE
        self._reader = mmap.mmap(self.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._writers = mmap.mmap(self.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._read_up_to = memoryview(self._reader)[:8].cast("Q")
        self._written_up_to = memoryview(self._writers)[:8].cast("Q")
        self._lengths = memoryview(self._writers)[page:].cast("I")
        self._page = page

    def take(self, most: int = 256) -> list[bytes]:
        """The next records, so many at most; none where there is none yet."""
        position, written = self._read_up_to[0], self._written_up_to[0]
        lengths, memory, mask, start = self._lengths, self._writers, self.size - 1, self._page + _RECORD_HEADER
        records: list[bytes] = []
        while position < written and len(records) < most:
            at = position & mask
            length = lengths[at >> 2]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if size == length:
                records.append(memory[start + at : start + at + size])
            position += (size + _RECORD_HEADER + 7) & ~7
        self._read_up_to[0] = position
        return records

    def close(self) -> None:
        """Unmaps it, too."""
        for view in (self._read_up_to, self._written_up_to, self._lengths):
            view.release()
        self._reader.close()
        self._writers.close()
        super().close()
