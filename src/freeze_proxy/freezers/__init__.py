"""Freezers carry out freeze and thaw on one kind of target. One file a kind, one small interface."""

from collections.abc import Callable


class FreezeError(Exception):
    """A freezer cannot do its work; the text is a sentence for the user."""


class Gone(FreezeError):
    """The target is no more: there is nothing to freeze, and nothing that would stay frozen."""


class Freezer:
    """Freezes and thaws one target. All methods but ``close`` raise ``FreezeError``.

    ``kind`` names the way (``cgroup2``, …), ``where`` what is frozen, both for people to read.
    """

    kind = ""
    where = ""
    way: tuple[str, ...] = ()
    """Of what ``remade`` makes it again in another process: its kind, and what its class is made from."""
    quick = True
    """Whether its calls take microseconds. One that asks a runtime takes milliseconds, and is called from a thread."""
    cpu_is_quick = False
    """Whether ``cpu_seconds`` takes a few microseconds only."""
    haste: Callable[[], object] | None = None
    """``thaw`` in as few steps as there can be, for whoever will call ``thaw`` a moment later. Raises ``OSError``."""
    stirs = False
    """Whether a process that stands still uses CPU time when a signal comes that it does not block."""

    def freeze(self) -> bool:
        """Begin to freeze; returns whether the target stands still already."""
        raise NotImplementedError

    def still(self) -> bool:
        """Whether all of the target stands still now, whoever stopped it."""
        raise NotImplementedError

    def frozen(self) -> bool:
        """After ``freeze``: like ``still``, and pushes on what is slow to."""
        return self.still()

    def alive(self) -> bool:
        """Whether there is anybody left to freeze."""
        return True

    def thaw(self) -> None:
        """Let the target run, as it did before. It is runnable when this returns. Idempotent."""
        raise NotImplementedError

    def cpu_seconds(self) -> float:
        """CPU time that the target has used so far, in seconds."""
        raise NotImplementedError

    def rescue(self) -> None:
        """Thaw, whoever froze it: for a process that takes over and does not know what was done."""
        self.thaw()

    def close(self) -> None:
        """Give back what is held; changes nothing about the target."""
