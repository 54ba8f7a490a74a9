"""Log lines of the daemon and the webhook: one JSON object each, on stderr.

Facts are given as ``extra={"facts": {…}}``; never a token.
"""

import json
import logging
import sys
import time


class _Json(logging.Formatter):
    """``time`` (RFC 3339, UTC), ``level``, ``event``, then the facts; ``trace`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line: dict[str, object] = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: str, of_libraries: str = "WARNING") -> None:
    """From now on. Libraries are heard from that level on: what they tell below it may hold what we send.

    Where strangers can cause their warnings, it is ``"ERROR"``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logging.basicConfig(level=of_libraries, handlers=[handler], force=True)
    logging.getLogger("freeze_proxy").setLevel(level.upper())
