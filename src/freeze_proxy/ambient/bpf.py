"""The bpf(2) system call, as little of it as is needed here: maps, programs, links, and running a program by itself.

No compiler and no library: a program is a few hundred bytes of instructions, made by ``assembly``. Sources: bpf(2) and
``include/uapi/linux/bpf.h`` of the kernel, whose names the constants bear; ``union bpf_attr`` only ever grows at its
end, and a kernel takes a shorter one than its own.
"""

import ctypes
import errno
import mmap
import os
import platform
import resource
import struct

from freeze_proxy.freezers import FreezeError

MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM = range(4)
PROG_LOAD, PROG_TEST_RUN, PROG_QUERY, LINK_CREATE = 5, 10, 16, 28
HASH, ARRAY, RINGBUF = 1, 2, 27
F_NO_PREALLOC, F_MMAPABLE = 1 << 0, 1 << 10
CGROUP_SKB = 8
INGRESS, EGRESS = 0, 1
"""``BPF_CGROUP_INET_INGRESS`` and ``BPF_CGROUP_INET_EGRESS``."""

_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_ATTR_SIZE = 128
_LOG_SIZE = 1 << 20
_LOG_SHOWN = 12
"""Lines of the verifier's log that an error shows: its last ones say what is wrong, and where."""

_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(FreezeError):
    """The kernel refuses something; the text says what, and what to do. ``log`` is all that its verifier said."""

    def __init__(self, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.log = log


def _bpf(command: int, attr: "ctypes.Array[ctypes.c_char]") -> int:
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise BpfError(f"Programs in the kernel are not supported here on {platform.machine()}.")
    result = int(_libc.syscall(number, command, attr, len(attr)))
    if result < 0 and ctypes.get_errno() == errno.EPERM and command in (MAP_CREATE, PROG_LOAD):
        # Until Linux 5.11 maps and programs count as locked memory, of which little is allowed.
        before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None
        result = int(_libc.syscall(number, command, attr, len(attr)))
        failed = ctypes.get_errno()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)  # it is inherited
        ctypes.set_errno(failed)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _attr(layout: str, *values: object) -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(struct.pack("=" + layout, *values), _ATTR_SIZE)


def _called(command: int, what: str, layout: str, *values: object) -> int:
    """The result of a call; its refusal becomes a sentence that begins with ``what``."""
    try:
        return _bpf(command, _attr(layout, *values))
    except OSError as error:
        raise BpfError(f"{what}: {_why(error)}") from error


def _why(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "not permitted; it needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN. Run freeze-proxy as root."
    if error.errno in (errno.EINVAL, errno.ENOSYS):
        return f"{error.strerror}; it needs Linux 5.8 or later, with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF."
    return f"{error.strerror}."


class Descriptor:
    """Something of the kernel's that lives as long as the file descriptor ``fd`` is open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def kernel_bytes(self) -> int:
        """Memory that the kernel charges for it (``memlock`` in /proc/self/fdinfo), where it says so."""
        with open(f"/proc/self/fdinfo/{self.fd}", encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("memlock:"))

    def close(self) -> None:
        """Gives it back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Map(Descriptor):
    """A map; sizes are bytes. Raises ``BpfError`` where it cannot be had."""

    def __init__(self, kind: int, key_size: int, value_size: int, entries: int, flags: int = 0) -> None:
        super().__init__(
            _called(MAP_CREATE, "No map can be made in the kernel", "5I", kind, key_size, value_size, entries, flags)
        )
        self.value_size = value_size

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            _bpf(MAP_LOOKUP_ELEM, _attr("I4xQQQ", self.fd, *_addresses(held := _held(key), value), 0))
            del held
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise BpfError(f"A map cannot be read: {_why(error)}") from error
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Sets the value of a key."""
        held = _held(key), _held(value)
        _called(MAP_UPDATE_ELEM, "A map cannot be written", "I4xQQQ", self.fd, *_addresses(*held), 0)

    def delete(self, key: bytes) -> None:
        """Forgets a key, if it is there."""
        held = _held(key)
        try:
            _bpf(MAP_DELETE_ELEM, _attr("I4xQQQ", self.fd, *_addresses(held), 0, 0))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise BpfError(f"A map cannot be written: {_why(error)}") from error


def _held(data: bytes) -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(data, len(data))


def _addresses(*buffers: "ctypes.Array[ctypes.c_char]") -> list[int]:
    return [ctypes.addressof(buffer) for buffer in buffers]


class SharedValue(Map):
    """One value of ``size`` bytes that a program and this process see at once: ``view`` is its memory.

    An array of one entry, mapped; a program has its address as a constant (``assembly.Program.address``).
    """

    def __init__(self, size: int) -> None:
        super().__init__(ARRAY, 4, size, 1, F_MMAPABLE)
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(self.fd, pages, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = memoryview(self._memory)[:size]

    def close(self) -> None:
        """Unmaps it, too."""
        self.view.release()
        self._memory.close()
        super().close()


class LoadedProgram(Descriptor):
    """A program of type cgroup_skb that has passed the kernel's verifier; it is called for ``direction``.

    Raises ``BpfError`` with the end of the verifier's log where it has not.
    """

    def __init__(self, code: bytes, direction: int, name: str) -> None:
        self.direction = direction
        license = _held(b"Apache-2.0\0")
        instructions = _held(code)
        fields = (CGROUP_SKB, len(code) // 8, *_addresses(instructions, license))
        rest = (0, 0, name.encode()[:15], 0, direction)
        try:
            super().__init__(_bpf(PROG_LOAD, _attr("IIQQIIQII16sII", *fields, 0, 0, 0, *rest)))
            return
        except OSError as error:
            refused = error
        # Once more, for the reason: writing the log costs a kernel more than the check.
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            super().__init__(_bpf(PROG_LOAD, _attr("IIQQIIQII16sII", *fields, 1, _LOG_SIZE, *_addresses(log), *rest)))
        except OSError:
            said = log.value.decode(errors="replace")
            sentence = f"The kernel does not take the program {name}: {_why(refused)}"
            if said.strip():
                end = "\n".join(f"    {line}" for line in said.strip().splitlines()[-_LOG_SHOWN:])
                sentence = f"The kernel's verifier refuses the program {name} ({refused.strerror}):\n{end}"
            raise BpfError(sentence, said) from refused

    def attach(self, cgroup: int) -> Descriptor:
        """Have it called for the sockets of a cgroup, given by a descriptor of its directory, and of those below it.

        For as long as the link that is returned stays open: it goes with the process, however that ends. Other
        programs there are called as well.
        """
        return Descriptor(
            _called(LINK_CREATE, "No program can be attached to the cgroup", "4I", self.fd, cgroup, self.direction, 0)
        )

    def test(self, packet: bytes, repeat: int = 1) -> tuple[int, int]:
        """Run it on a packet that begins with an Ethernet header: what it answers, and the nanoseconds that it took."""
        held = _held(packet)
        attr = _attr("IIIIQQII", self.fd, 0, len(packet), 0, *_addresses(held), 0, repeat, 0)
        try:
            _bpf(PROG_TEST_RUN, attr)
        except OSError as error:
            raise BpfError(f"The program cannot be run by itself: {_why(error)}") from error
        _fd, answer, *_, duration = struct.unpack_from("=IIIIQQII", attr)
        return answer, duration


def attached(cgroup: int, direction: int) -> list[int]:
    """The ids of the programs that are attached to a cgroup itself (``BPF_PROG_QUERY``)."""
    ids = (ctypes.c_uint32 * 64)()
    attr = _attr("IIIIQI", cgroup, direction, 0, 0, ctypes.addressof(ids), len(ids))
    try:
        _bpf(PROG_QUERY, attr)
    except OSError as error:
        raise BpfError(f"It cannot be told which programs are attached: {_why(error)}") from error
    return list(ids[: struct.unpack_from("=IIIIQI", attr)[5]])
