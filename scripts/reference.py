"""Writes what the code itself knows into docs/daemon.md, docs/sidecar.md and docs/configure.md: options, metrics, …

    python -m scripts.reference             writes them
    python -m scripts.reference doctor …    runs ``freeze-proxy doctor …`` and writes its output into the README
    python -m scripts.reference frozen      writes what ``make vm-test`` has seen of frozen containers into
                                            docs/frozen-containers.md

The metrics are read from a daemon that is started for it, on free ports, with nothing to freeze and nobody to ask.
``tests/daemon/test_reference.py`` holds that the page is what these commands write.
"""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from prometheus_client.parser import text_string_to_metric_families

from freeze_proxy import cli
from freeze_proxy.annotations import ANNOTATIONS, PREFIX
from freeze_proxy.sidecar import config
from freeze_proxy.webhook.metrics import Metrics

ROOT = Path(__file__).resolve().parent.parent
PAGE, README = ROOT / "docs" / "daemon.md", ROOT / "README.md"
SIDECAR, CONFIGURE = ROOT / "docs" / "sidecar.md", ROOT / "docs" / "configure.md"
OPTIONS, METRICS, DOCTOR, VARIABLES, ANNOTATED = "options", "metrics", "doctor", "variables", "annotations"
FROZEN, SEEN = ROOT / "docs" / "frozen-containers.md", ROOT / "build" / "vm-test" / "frozen.json"
ON_CGROUP2 = "what was seen on cgroup2"
KUBECONFIG = """\
{"apiVersion": "v1", "kind": "Config", "current-context": "none",
 "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
 "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
 "users": [{"name": "none", "user": {}}]}
"""


def options(command: click.Command = cli.daemon) -> str:
    """A row for each of the options of the daemon or the webhook, as the command itself has them."""
    rows = ["| flag | environment | default | |", "|---|---|---|---|"]
    context = click.Context(command, info_name=command.name, **command.context_settings)
    for option in command.params:
        assert isinstance(option, click.Option)
        about: dict[str, Any] = option.to_info_dict()
        if isinstance(option.type, click.Choice):
            text = f"{', '.join(f'`{each}`' for each in option.type.choices)}. {about['help']}"
        else:
            text = about["help"]
        default = f"`{option.default}`" if isinstance(option.default, str) else ""
        variable = f"`{option.envvar or f'{context.auto_envvar_prefix}_{str(option.name).upper()}'}`"
        flag = (
            f"`{option.opts[0]} {option.make_metavar(context)}`"
            if not isinstance(option.type, click.Choice)
            else (f"`{option.opts[0]}`")
        )
        rows.append(f"| {flag} | {variable} | {default} | {text} |")
    return "\n".join(rows) + "\n"


def variables() -> str:
    """A row for each of a sidecar's variables."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, default, about in config.VARIABLES:
        told = "*needed*" if default is None else f"`{default}`" if default else ""
        rows.append(f"| `{config.PREFIX}{name}` | {told} | {about} |")
    return "\n".join(rows) + "\n"


def annotations() -> str:
    """A row for each annotation."""
    rows = ["| annotation | default | in the ConfigMap | |", "|---|---|---|---|"]
    for each in ANNOTATIONS:
        default = f"`{each.default}`" if each.default else ""
        wide = f"`{each.name}`" if each.cluster_wide else ""
        rows.append(f"| `{PREFIX}{each.name}` | {default} | {wide} | {each.about} |")
    return "\n".join(rows) + "\n"


def webhook_metrics() -> str:
    """A row for each metric of the webhook."""
    return metrics(Metrics(lambda: 0.0, lambda: 0.0).text()[0].decode())


def metrics(text: str) -> str:
    """A row for each metric in what ``/metrics`` answers, with the values that its labels can have."""
    rows = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for family in text_string_to_metric_families(text):
        labels: dict[str, list[str]] = {}
        for sample in family.samples:
            for name, value in sample.labels.items():
                if name != "le" and value not in labels.setdefault(name, []):
                    labels[name].append(value)
        told = "; ".join(f"`{name}`: {', '.join(values)}" for name, values in labels.items())
        if family.name.startswith("freeze_proxy_pod_"):
            told = "`namespace`, `pod`, `revision`"  # of a daemon without pods there are no samples
            told += "; `order`: freeze, thaw" if family.name.endswith("_failed_orders") else ""
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {told} | {family.documentation} |")
    return "\n".join(row for row in rows if "`process_" not in row) + "\n"


def scraped() -> str:
    """What a daemon answers that has just been started."""
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder, "kubeconfig")
        kubeconfig.write_text(KUBECONFIG)
        with _daemon(folder, kubeconfig) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()


@contextlib.contextmanager
def _daemon(folder: str, kubeconfig: Path) -> Iterator[int]:
    """Its health port."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "freeze_proxy", "daemon", "--kubeconfig", str(kubeconfig)),
            *("--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--state-dir", f"{folder}/state"),
            *("--runtime-socket", f"{folder}/nobody.sock"),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            facts = json.loads(line) if line.startswith("{") else {}
            if facts.get("event") == "the daemon has started":
                yield int(facts["health"].rpartition(":")[2])
                return
        raise SystemExit("The daemon did not start.")
    finally:
        process.terminate()
        process.communicate(timeout=20)


def doctor(arguments: list[str]) -> str:
    """What ``freeze-proxy doctor`` prints, as a block."""
    done = subprocess.run(
        [sys.executable, "-m", "freeze_proxy", "doctor", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        timeout=60,
    )
    # A kernel's number says enough; what its builder adds to it is about one machine.
    text = re.sub(r"(?<=\d)-[a-z]\S*", lambda added: " " * len(added[0]), done.stdout)
    lines = "\n".join(f"    {line}".rstrip() for line in text.rstrip().splitlines())
    return f"\n{lines}\n\n"


def frozen(told: dict[str, Any]) -> str:
    """The table of what is in ``frozen.json``, a row for each thing that was done, and the versions."""
    seen, versions = told["seen"], told["versions"]
    runtimes = list(dict.fromkeys(name for cells in seen.values() for name in cells))
    rows = [f"| what | {' | '.join(runtimes)} |", "|---" * (len(runtimes) + 1) + "|"]
    for what, cells in seen.items():
        texts = [cells.get(name, "") for name in runtimes]
        same = len(set(texts)) == 1 and len(texts) > 1
        rows.append(f"| {what} | {' | '.join([texts[0], *['the same'] * (len(texts) - 1)] if same else texts)} |")
    made = (
        f"containerd {versions['containerd']}, {', '.join(f'{name} {versions[name]}' for name in runtimes)}, "
        f"systemd {versions['systemctl']}, Linux {versions['linux']}, in QEMU's software emulation, {told['date']}"
    )
    return "\n".join([*rows, "", f"Seen with {made}.", ""])


def marks(what: str) -> tuple[str, str]:
    """Between which lines of a page it stands."""
    return f"<!-- {what}: written by python -m scripts.reference -->\n", f"<!-- end of {what} -->\n"


def written(page: str, what: str, text: str) -> str:
    """The page with this text in its place."""
    begin, end = marks(what)
    new, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: begin + text + end, page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"The page must have these marks once: {begin.strip()} … {end.strip()}")
    return new


def main(arguments: list[str]) -> None:
    """Write."""
    if arguments[:1] == ["doctor"]:
        README.write_text(written(README.read_text(), DOCTOR, doctor(arguments[1:])))
        return
    if arguments[:1] == ["frozen"]:
        FROZEN.write_text(written(FROZEN.read_text(), ON_CGROUP2, frozen(json.loads(SEEN.read_text()))))
        return
    SIDECAR.write_text(written(SIDECAR.read_text(), VARIABLES, variables()))
    page = CONFIGURE.read_text()
    for what, text in ((ANNOTATED, annotations()), (OPTIONS, options(cli.webhook)), (METRICS, webhook_metrics())):
        page = written(page, what, text)
    CONFIGURE.write_text(page)
    page = PAGE.read_text()
    for what, text in ((OPTIONS, options()), (METRICS, metrics(scraped()))):
        page = written(page, what, text)
    PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])
