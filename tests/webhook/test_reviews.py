"""The wire between API server and webhook."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeze_proxy.webhook.inject import Outcome
from freeze_proxy.webhook.reviews import LONGEST_BODY, Malformed, answer, fitted, read
from tests.support.webhooks import review

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def test_it_is_read() -> None:
    found = read(json.dumps(review({"spec": {}}, "shop", "u-1")).encode())
    assert (found.uid, found.namespace, found.pod) == ("u-1", "shop", {"spec": {}})


def changed(**parts: Any) -> dict[str, Any]:
    whole = review({})
    for name, value in parts.items():
        (whole if name in whole else whole["request"])[name] = value
    return whole


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an AdmissionReview"),
        (b"null", "not an AdmissionReview"),
        (changed(kind="Pod"), "not an AdmissionReview"),
        (changed(apiVersion="admission.k8s.io/v1beta1"), "not of admission.k8s.io/v1"),
        (changed(uid=""), "no request.uid"),
        (changed(uid=7), "no request.uid"),
        (changed(uid="u" * 300), "no request.uid"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}, "no request.uid"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": []}, "no request.uid"),
    ],
)
def test_what_is_no_review(body: Any, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        read(body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    "part",
    [
        {"object": None},
        {"object": []},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": "Pod"},
        {"operation": "UPDATE"},  # most of a pod cannot be changed
        {"operation": "DELETE", "object": None},
        {"subResource": "ephemeralcontainers"},
    ],
)
def test_what_is_no_pod_that_is_being_created_is_a_review_all_the_same(part: dict[str, Any]) -> None:
    """By the API's rules it is answered with its uid; nothing is held up by it."""
    whole = review({})
    whole["request"] |= part
    found = read(json.dumps(whole).encode())
    assert (found.uid, found.pod) == (whole["request"]["uid"], None)


@given(JSON, st.sampled_from(["kind", "apiVersion", "request", "uid", "object", "namespace", ""]))
def test_any_json_is_read_or_malformed(value: Any, place: str) -> None:
    whole: Any = changed(**{place: value}) if place else value
    try:
        found = read(json.dumps(whole).encode())
    except Malformed:
        return
    assert isinstance(found.uid, str)
    assert found.pod is None or isinstance(found.pod, dict)


def told(outcome: Outcome) -> dict[str, Any]:
    response: dict[str, Any] = json.loads(answer("u-1", outcome))["response"]
    assert response["uid"] == "u-1"
    return response


def test_answers() -> None:
    assert told(Outcome()) == {"uid": "u-1", "allowed": True}
    patch = [{"op": "add", "path": "/x", "value": 1}]
    patched = told(Outcome(patch, ["careful"]))
    assert patched["allowed"]
    assert patched["patchType"] == "JSONPatch"
    assert patched["warnings"] == ["careful"]
    assert json.loads(base64.b64decode(patched["patch"])) == patch
    refused = told(Outcome(refused="No.", patch=patch))
    assert refused == {
        "uid": "u-1", "allowed": False, "status": {"code": 400, "reason": "BadRequest", "message": "No."}
    }  # fmt: skip


@given(st.lists(st.text(), max_size=40))
def test_warnings_fit(warnings: list[str]) -> None:
    """At most 256 characters each and 4096 together, and nothing that breaks a header."""
    kept = fitted(warnings)
    assert all(len(one.encode()) <= 256 and one.isprintable() for one in kept)
    assert sum(len(one.encode()) for one in kept) <= 4096
    assert len(kept) <= len(warnings)


def test_long_warnings_are_cut_and_many_left_out() -> None:
    (one,) = fitted(["é" * 300])
    assert one.endswith("…")
    assert len(one.encode()) <= 256
    assert len(fitted(["x" * 256] * 20)) == 16


def test_the_bound_is_no_smaller_than_the_api_servers() -> None:
    """kube-apiserver takes 3 MiB, and a review has the object and a little more."""
    assert LONGEST_BODY >= 3 << 20
