"""What is written about the webhook agrees with what it is: annotations, options, metrics, events."""

import ast
import re
from pathlib import Path

import freeze_proxy
from freeze_proxy import cli
from freeze_proxy.annotations import ANNOTATIONS, usable
from scripts import reference
from tests.support.webhooks import manifest

WEBHOOK = Path(freeze_proxy.__file__).parent / "webhook"


def page() -> str:
    return reference.CONFIGURE.read_text()


def test_the_annotations_are_those_it_reads() -> None:
    assert reference.written(page(), reference.ANNOTATED, reference.annotations()) == page(), "run scripts.reference"


def test_what_holds_where_nothing_is_said_can_be_said() -> None:
    defaults = {each.name: each.default for each in ANNOTATIONS if each.cluster_wide and each.default}
    assert usable(defaults) == defaults
    (config,) = manifest("300-config-freeze-proxy.yaml", "ConfigMap")
    assert config["data"] == defaults


def test_the_options_are_those_of_the_command() -> None:
    told = reference.options(cli.webhook)
    assert reference.written(page(), reference.OPTIONS, told) == page(), "run scripts.reference"


def test_the_metrics_are_those_of_the_webhook() -> None:
    told = reference.webhook_metrics()
    assert reference.written(page(), reference.METRICS, told) == page(), "run scripts.reference"


def test_what_the_log_tells_is_listed() -> None:
    """Every event by a constant text, wherever it is chosen."""
    told = set()
    for path in WEBHOOK.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log."):
                told |= {each.value for each in node.args if isinstance(each, ast.Constant)}
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "what"
                and isinstance(node.value, ast.IfExp)
            ):
                told |= {each.value for each in (node.value.body, node.value.orelse) if isinstance(each, ast.Constant)}
    listed = re.findall(r"^\| `([^`]+)` \| (?:debug|info|warning|error)", page(), re.MULTILINE)
    assert len(told) > 10
    assert set(listed) == told
