"""What observers tell, and to whom."""


class Tally:
    """Is told what is in flight. Each ``began`` and each ``held`` is followed by one ``ended``, in the end."""

    __slots__ = ()

    def began(self) -> None:
        """An exchange has begun."""
        raise NotImplementedError

    def held(self) -> None:
        """Something that is no new exchange needs the server awake, such as an HTTP/2 handshake."""
        raise NotImplementedError

    def ended(self) -> None:
        """What had begun, or was held, has ended."""
        raise NotImplementedError
