"""Observers read the bytes that pass and tell when exchanges begin and end; they change nothing.

``pick`` chooses one from the first bytes that a client sends. An observer is given every byte of both directions in
order and tells a ``Tally``. All of them keep these promises, whatever a client or a server sends:

- They never raise, never loop, and keep at most ``HEAD_LIMIT`` bytes a direction.
- The counts are the same for every way of cutting the bytes into reads.
- What they cannot follow turns the connection *opaque*: it counts as in flight until it closes.
"""

from freeze_proxy.observe.http1 import Http1
from freeze_proxy.observe.http2 import PREFACE, Http2
from freeze_proxy.observe.tally import Tally

Observer = Http1 | Http2

__all__ = ["Http1", "Http2", "Observer", "Tally", "pick"]

_FIRST = PREFACE[:4]  # No HTTP/1 method begins like this, and a server speaks only once a whole head is there.


def pick(first: bytes, tally: Tally) -> Observer | None:
    """The observer for a connection whose client begins with these bytes; ``None`` while more of them are needed.

    HTTP/2 is known by its connection preface (RFC 9113 §3.4), "with prior knowledge"; all else is left to HTTP/1.1,
    which turns opaque when it is something different.
    """
    if first.startswith(_FIRST):
        return Http2(tally)
    if _FIRST.startswith(first):
        return None
    return Http1(tally)
