"""The samples with their sidecars, written by ``python -m tests.webhook.golden``: to be read by people, in a diff."""

import json
from pathlib import Path

from freeze_proxy.webhook.inject import Options, inject

HERE = Path(__file__).parent
PODS = sorted((HERE / "pods").glob("*.json"))


def golden(path: Path) -> str:
    """What the sample's patch is, as the file should have it."""
    outcome = inject(json.loads(path.read_text()), "default", Options(image="sidecar"), "n0nce")
    written = {"patch": outcome.patch, "warnings": outcome.warnings, "refused": outcome.refused}
    return json.dumps(written, indent=1) + "\n"


if __name__ == "__main__":
    for each in PODS:
        (HERE / "golden" / each.name).write_text(golden(each))
