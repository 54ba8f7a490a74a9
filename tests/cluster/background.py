"""What goes on beside other tests, since it takes long: a function in a thread, whose end one of them awaits."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Begins at once."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._answer: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self, within: float = 120) -> T:
        """What came of it; raises what it raised, and ``AssertionError`` if it takes longer than ``within`` seconds."""
        self._thread.join(within)
        assert not self._thread.is_alive(), f"not done within {within:.0f} s"
        if self._error is not None:
            raise self._error
        return self._answer[0]
