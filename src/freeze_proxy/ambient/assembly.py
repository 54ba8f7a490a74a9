"""An assembler of BPF instructions with labels: what ``program`` is written in.

An instruction is eight bytes: operation, registers, a jump's distance or a memory offset, a constant (the kernel's
``Documentation/bpf/standardization/instruction-set.rst``). Registers are ``r0`` to ``r10``: r0 answers calls, r1 to r5
are their arguments and lost in them, r6 to r9 are kept, r10 is the end of the stack.
"""

import struct
import sys

Label = str
Value = "int | Register"

_BYTES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_ALU = {"+=": 0x00, "-=": 0x10, "*=": 0x20, "|=": 0x40, "&=": 0x50, "<<=": 0x60, ">>=": 0x70, "^=": 0xA0, "=": 0xB0}
_JUMPS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "<": 0xA0, "<=": 0xB0, "s<=": 0xD0}
_SWAP_TO_BIG = 0xDC
_PSEUDO_MAP_FD, _PSEUDO_MAP_VALUE = 1, 2


class Register(int):
    """One of r0 to r10."""


r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10 = (Register(number) for number in range(11))


class Program:
    """Instructions in the order in which the methods are called; ``code`` gives them with all jumps resolved.

    A comparison jumps to a label, which is written down by ``label`` before or after it.
    """

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | Label, int]] = []
        self._labels: dict[Label, int] = {}

    def set(self, target: Register, operator: str, value: "int | Register") -> None:
        """``target operator value`` on 64 bits, where ``operator`` is ``=``, ``+=``, ``&=``, …"""
        self._alu(0x07, target, operator, value)

    def set32(self, target: Register, operator: str, value: "int | Register") -> None:
        """The same on the lower 32 bits; the upper become zero."""
        self._alu(0x04, target, operator, value)

    def load(self, target: Register, size: int, base: Register, offset: int) -> None:
        """``size`` bytes (1, 2, 4 or 8) from memory, in the machine's order of bytes."""
        self._emit(0x61 | _BYTES[size], target, base, offset, 0)

    def store(self, size: int, base: Register, offset: int, value: "int | Register") -> None:
        """``size`` bytes to memory."""
        if isinstance(value, Register):
            self._emit(0x63 | _BYTES[size], base, value, offset, 0)
        else:
            self._emit(0x62 | _BYTES[size], base, r0, offset, value)

    def add_atomically(self, base: Register, offset: int, value: Register) -> None:
        """Add to 8 bytes of memory that others add to as well."""
        self._emit(0xDB, base, value, offset, 0)

    def swap_to_big(self, target: Register, bits: int) -> None:
        """From the network's order of bytes to the machine's, or back (``be16``, ``be32``)."""
        self._emit(_SWAP_TO_BIG, target, r0, 0, bits)

    def map(self, target: Register, fd: int) -> None:
        """The map itself, as the kernel's functions want it."""
        self._wide(target, _PSEUDO_MAP_FD, fd, 0)

    def address(self, target: Register, fd: int, offset: int) -> None:
        """The address within the only value of an array."""
        self._wide(target, _PSEUDO_MAP_VALUE, fd, offset)

    def call(self, function: int) -> None:
        """One of the kernel's functions for programs, by its number."""
        self._emit(0x85, r0, r0, 0, function)

    def jump(self, to: Label) -> None:
        """Go on at a label."""
        self._emit(0x05, r0, r0, to, 0)

    def jump_if(self, left: Register, operator: str, right: "int | Register", to: Label) -> None:
        """Go on at a label if this holds on 64 bits, unsigned; ``s>`` and ``s<=`` compare signed, ``&`` tests bits."""
        self._compare(0x05, left, operator, right, to)

    def jump_if32(self, left: Register, operator: str, right: "int | Register", to: Label) -> None:
        """The same on the lower 32 bits."""
        self._compare(0x06, left, operator, right, to)

    def exit(self) -> None:
        """Answer with r0."""
        self._emit(0x95, r0, r0, 0, 0)

    def label(self, name: Label) -> None:
        """The next instruction is called so."""
        if name in self._labels:
            raise ValueError(f"There are two places called {name!r}.")
        self._labels[name] = len(self._code)

    def code(self) -> bytes:
        """The bytes for the kernel. Raises ``ValueError`` where a label is missing."""
        packed = []
        for at, (operation, target, source, offset, constant) in enumerate(self._code):
            if isinstance(offset, str):
                if offset not in self._labels:
                    raise ValueError(f"There is no place called {offset!r}.")
                offset = self._labels[offset] - at - 1  # counted from the next instruction
            registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
            constant = (constant + (1 << 31)) % (1 << 32) - (1 << 31)
            packed.append(struct.pack("=BBhi", operation, registers, offset, constant))
        return b"".join(packed)

    def _alu(self, kind: int, target: Register, operator: str, value: "int | Register") -> None:
        if isinstance(value, Register):
            self._emit(kind | 0x08 | _ALU[operator], target, value, 0, 0)
        else:
            self._emit(kind | _ALU[operator], target, r0, 0, value)

    def _compare(self, kind: int, left: Register, operator: str, right: "int | Register", to: Label) -> None:
        if isinstance(right, Register):
            self._emit(kind | 0x08 | _JUMPS[operator], left, right, to, 0)
        else:
            self._emit(kind | _JUMPS[operator], left, r0, to, right)

    def _wide(self, target: Register, kind: int, low: int, high: int) -> None:
        self._emit(0x18, target, Register(kind), 0, low)
        self._emit(0x00, r0, r0, 0, high)

    def _emit(self, operation: int, target: int, source: int, offset: int | Label, constant: int) -> None:
        self._code.append((operation, target, source, offset, constant))
