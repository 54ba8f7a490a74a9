"""The wire between API server and webhook: ``admission.k8s.io/v1`` AdmissionReview, read and answered. Pure.

From Kubernetes' documentation of dynamic admission control: an answer carries the request's ``uid``; a patch is JSON
Patch in base64; a warning has at most 256 characters, and all of them 4096, or some are left out.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from freeze_proxy.webhook.inject import Outcome

LONGEST_BODY = 3 << 20
"""Bytes of a review: the API server takes no larger object, either."""
_LONGEST_WARNING, _LONGEST_WARNINGS, _LONGEST_UID = 256, 4096, 256
_VERSION = "admission.k8s.io/v1"


class Malformed(Exception):
    """This is no review, and there is nobody to answer with one; the text is a sentence."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Review:
    """What is asked: about this pod, in this namespace; ``pod`` is nothing where it is no pod that is being created."""

    uid: str
    namespace: str
    pod: dict[str, Any] | None


def read(body: bytes) -> Review:
    """The review in this body. Raises ``Malformed``."""
    try:
        review = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("The body is not JSON.") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise Malformed("The body is not an AdmissionReview.")
    if review.get("apiVersion") != _VERSION:
        raise Malformed(f"The AdmissionReview is not of {_VERSION}, the only version that is spoken here.")
    request = review.get("request")
    uid = request.get("uid") if isinstance(request, dict) else None
    if not isinstance(request, dict) or not isinstance(uid, str) or not 0 < len(uid) <= _LONGEST_UID:
        raise Malformed("The AdmissionReview has no request.uid.")
    pod, kind, namespace = request.get("object"), request.get("kind"), request.get("namespace")
    ours = (
        isinstance(kind, dict)
        and (kind.get("group"), kind.get("kind")) == ("", "Pod")
        and request.get("operation") == "CREATE"
        and not request.get("subResource")
        and isinstance(pod, dict)
    )
    return Review(uid, namespace if isinstance(namespace, str) else "", pod if ours else None)


def answer(uid: str, outcome: Outcome) -> bytes:
    """The AdmissionReview that says this."""
    response: dict[str, Any] = {"uid": uid, "allowed": not outcome.refused}
    if outcome.refused:
        response["status"] = {"code": 400, "reason": "BadRequest", "message": outcome.refused}
    elif outcome.patch:
        response |= {
            "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(outcome.patch, separators=(",", ":")).encode()).decode(),
        }
    if warnings := fitted(outcome.warnings):
        response["warnings"] = warnings
    review = {"apiVersion": _VERSION, "kind": "AdmissionReview", "response": response}
    return json.dumps(review, separators=(",", ":")).encode()


def fitted(warnings: Iterable[str]) -> list[str]:
    """As much of these warnings as the API server passes on. They go into a header: control characters become spaces.

    Lengths are counted in bytes of UTF-8, which are never fewer than characters.
    """
    kept: list[str] = []
    room = _LONGEST_WARNINGS
    for warning in warnings:
        line = "".join(character if character.isprintable() else " " for character in warning)
        text = line.encode(errors="replace")
        if len(text) > _LONGEST_WARNING:
            text = text[: _LONGEST_WARNING - 3].decode(errors="ignore").encode() + "…".encode()
        if len(text) > room:
            break
        room -= len(text)
        kept.append(text.decode())
    return kept
