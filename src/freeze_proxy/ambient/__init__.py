"""Ambient: no hop and no sidecar. Traffic goes straight to the server, and a packet for a frozen one wakes it.

A frozen server keeps its sockets. The kernel completes handshakes for it and queues bytes; nobody has to accept or hold
a request, only to notice it. So a program in the kernel looks at the packets of the server's cgroup (``program``) and
tells this process, which thaws it.

To watch servers, make one ``Watcher`` for the process and have it read when its ``fd`` is readable::

    watcher = Watcher(servers=250)
    loop.watch(watcher.fd, READ, lambda _events: watcher.read())

    watch = watcher.watch("/sys/fs/cgroup/…", ports=(8080,), told=on_record)
    seen = watch.packets        # ... and nothing is in flight:
    watch.arm()                 # from now on a packet for the server makes ``told`` be called
    freezer.freeze()            # until it stands still; then, for what has come meanwhile, look again:
    if watch.packets != seen:
        freezer.thaw()

``watch.disarm()`` after the thaw; ``watch.close()`` when the server is gone. All of it goes when the process ends,
however that comes about: the kernel takes the programs away with its descriptors.
"""

from freeze_proxy.ambient.obstacles import obstacle
from freeze_proxy.ambient.watcher import Watch, Watcher

__all__ = ["Watch", "Watcher", "obstacle"]
