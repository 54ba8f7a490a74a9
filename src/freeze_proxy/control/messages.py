"""The words on the wire between a sidecar and the daemon: HTTP/1.1 with a token, and JSON that is small.

Pure, and used by both sides; the sidecar's memory forbids ``json`` and ``re`` here.
"""

PORT = 9696
FREEZE, THAW, HOOK = "/freeze", "/thaw", "/"
"""Paths. ``HOOK`` is what queue-proxy of Knative 0.26 to 1.9 calls, with ``PAUSE`` or ``RESUME`` in the body."""
PAUSE, RESUME = "pause", "resume"
AUDIENCE, HOOK_AUDIENCE = "freeze", "concurrency-state-hook"
"""For whom the token must have been issued."""
TOKEN, LEASE, CONNECTION = "token", "lease", "connection"  # noqa: S105 - names of header fields
"""Header fields, and the lease's value: it is bound to the connection."""
FROZEN, THROTTLED, AWAKE = "frozen", "throttled", "awake"
"""States in an answer."""
MODES = ("freeze", "throttle", "dry-run")
MOST_TOKEN, MOST_HEAD, MOST_BODY = 8 * 1024, 16 * 1024, 16 * 1024
"""Bytes: of a token, of a request's head, of its body."""
