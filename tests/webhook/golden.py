"""The samples with their sidecars, written by ``python -m tests.webhook.golden``: to be read by people, in a diff."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from freeze_proxy.webhook.inject import Options, inject
from tests.webhook.releases import RELEASES, as_of

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
PODS = sorted((HERE / "pods").glob("*.json"))
PROBED = HERE / "pods" / "5-all-probes.json"
EXAMPLE = HERE.parents[1] / "config" / "example-deployment.yaml"


def samples() -> Iterator[tuple[str, dict[str, Any], Options]]:
    """The files' names, and what is in them: a pod, and how its cluster is."""
    native = Options(image="sidecar")
    plain = Options(image="sidecar", native_sidecars=False, native_ports=False)
    for path in PODS:
        yield path.stem, json.loads(path.read_text()), native
    for release in RELEASES:
        yield f"serving-{release}", as_of(json.loads(PROBED.read_text()), release), native
    yield "first-container", json.loads(PODS[0].read_text()), plain
    (deployment,) = [one for one in yaml.safe_load_all(EXAMPLE.read_text()) if one["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    template["spec"]["serviceAccountName"] = "default"  # as the API server has it by then
    yield "deployment", template, native
    yield "deployment-first-container", template, plain


def golden(pod: dict[str, Any], options: Options) -> str:
    """What its patch is, as the file should have it."""
    outcome = inject(pod, "default", options, "n0nce")
    written = {"patch": outcome.patch, "warnings": outcome.warnings, "refused": outcome.refused}
    return json.dumps(written, indent=1) + "\n"


if __name__ == "__main__":
    for name, pod, options in samples():
        (GOLDEN / f"{name}.json").write_text(golden(pod, options))
