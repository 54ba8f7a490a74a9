"""What a JSON Patch (RFC 6902) must say to make one document of another. Pure."""

from __future__ import annotations

from typing import Any


def difference(old: Any, new: Any, path: str) -> list[dict[str, Any]]:
    """The JSON Patch (RFC 6902) that makes ``new`` of ``old``; a list grows by elements with names of their own."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        patch = []
        for key in (*old, *(key for key in new if key not in old)):
            place = path + "/" + key.replace("~", "~0").replace("/", "~1")
            if key not in new:
                patch.append({"op": "remove", "path": place})
            elif key not in old:
                patch.append({"op": "add", "path": place, "value": new[key]})
            else:
                patch += difference(old[key], new[key], place)
        return patch
    if isinstance(old, list) and isinstance(new, list):
        added = [n for n, each in enumerate(new) if isinstance(each, dict) and each.get("name") not in _names(old)]
        kept = [each for n, each in enumerate(new) if n not in added]
        if len(kept) != len(old):
            added, kept = [], new
        if len(kept) == len(old):
            patch = []
            for n, (one, other) in enumerate(zip(old, kept, strict=True)):
                patch += difference(one, other, f"{path}/{n}")
            return patch + [{"op": "add", "path": f"{path}/{n}", "value": new[n]} for n in added]
    return [{"op": "replace", "path": path, "value": new}]


def _names(elements: list[Any]) -> list[Any]:
    return [each.get("name") for each in elements if isinstance(each, dict)]
