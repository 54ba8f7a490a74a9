"""Where reviews come in and answers go out: ``POST /mutate``, and nothing else on this port."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from freeze_proxy.webhook import metrics, reviews
from freeze_proxy.webhook.inject import Options, Outcome, inject
from freeze_proxy.webhook.metrics import Metrics
from freeze_proxy.webhook.server import TooLarge, body, sentence

PATH = "/mutate"
_NONCE_BYTES = 16
_FAILED = "freeze-proxy: the pod is left as it is, by a mistake of the webhook's; its log has the details."

_NO_POD = "freeze-proxy: this is no pod that is being created; the webhook's configuration should send nothing else."

_log = logging.getLogger(__name__)


class Desk:
    """Reviews pods by what ``options`` says at the time; a review comes to its end ``within`` so many seconds."""

    def __init__(self, options: Callable[[], Options], counted: Metrics, within: float) -> None:
        self._options = options
        self._metrics = counted
        self._within = within

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """To one request."""
        if request.path != PATH:
            return sentence(404, f"There is nothing here but {PATH}.")
        if request.method != "POST":
            return sentence(405, f"{PATH} takes POST, not {request.method[:20]}.", Allow="POST")
        if request.content_type != "application/json":
            return sentence(415, f"{PATH} takes application/json.")
        try:
            content = await body(request, reviews.LONGEST_BODY, self._within)
        except TooLarge:
            return self._malformed(413, f"A review has at most {reviews.LONGEST_BODY} bytes.")
        except TimeoutError:
            return self._malformed(408, "The review did not come to its end in time.")
        except web.RequestPayloadError:
            return self._malformed(400, "The body cannot be read.")
        began = time.perf_counter()
        try:
            review = reviews.read(content)
        except reviews.Malformed as reason:
            return self._malformed(reason.status, str(reason))
        outcome, name = self._decided(review)
        text = reviews.answer(review.uid, outcome)
        self._metrics.reviewed(name, len(outcome.warnings), time.perf_counter() - began)
        return web.Response(body=text, content_type="application/json")

    def _decided(self, review: reviews.Review) -> tuple[Outcome, str]:
        if review.pod is None:
            return Outcome(warnings=[_NO_POD]), metrics.UNCHANGED
        facts = {"namespace": review.namespace[:253], "pod": _name(review.pod)}
        try:
            outcome = inject(review.pod, review.namespace, self._options(), secrets.token_urlsafe(_NONCE_BYTES))
        except Exception:  # whatever it is, no pod is held up by it
            _log.exception("a review has failed, and the pod is let through", extra={"facts": facts})
            return Outcome(warnings=[_FAILED]), metrics.FAILED
        if outcome.refused:
            _log.info("a pod was refused", extra={"facts": facts | {"why": outcome.refused[:1000]}})
            return outcome, metrics.REFUSED
        what = "the sidecar was put into a pod" if outcome.patch else "a pod was left as it is"
        level = logging.INFO if outcome.patch or outcome.warnings else logging.DEBUG
        _log.log(level, what, extra={"facts": facts | {"warnings": reviews.fitted(outcome.warnings)}})
        return outcome, metrics.INJECTED if outcome.patch else metrics.UNCHANGED

    def _malformed(self, status: int, why: str) -> web.Response:
        self._metrics.malformed()
        _log.debug("what came was no review", extra={"facts": {"why": why}})
        return sentence(status, why)


def _name(pod: dict[str, Any]) -> str:
    """What to call it in the log: at its creation it may have no name yet."""
    metadata = pod.get("metadata")
    name = (metadata.get("name") or metadata.get("generateName")) if isinstance(metadata, dict) else None
    return str(name or "")[:253]
