"""What is done every so often, all of a process do at the same moments: to be woken costs more than most looks do."""

import asyncio


async def next_beat(every: float) -> None:
    """Until the next whole multiple of ``every`` seconds of the loop's clock that is at least half of that from now.

    So those for whom ``every`` is the same, or twice as much, are woken once: epoll waits for whole milliseconds.
    """
    now = asyncio.get_running_loop().time()
    beat = (now // every + 1) * every
    if beat - now < every / 2:
        beat += every
    await asyncio.sleep(beat - now)
