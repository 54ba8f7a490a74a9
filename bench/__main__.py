"""``python -m bench``: measure, write the results, and from them the page and its pictures."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import ambient, ambient_node, daemon, freezers, relay, report, sidecar, soak, wake, webhook
from bench.machine import ROOT, BenchError, end_on_sigterm, facts

PARTS = {
    "relay": relay.run,
    "soak": soak.run,
    "freezers": freezers.run,
    "wake": wake.run,
    "daemon": daemon.run,
    "sidecar": sidecar.run,
    "webhook": webhook.run,
    "ambient": ambient.run,
    "ambient-node": ambient_node.run,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A minute's run that shows that everything works. Needs --out.")
@click.option(
    "--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure this part and keep the other results."
)
@click.option("--scenario", multiple=True, metavar="NAME", help="Of the relay's scenarios, measure only this.")
@click.option(
    "--render", is_flag=True, help="Measure nothing; write page and pictures from the results that are there."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write latest.json, benchmarks.md and images/ here, instead of to bench/results and docs.",
)
def main(quick: bool, only: tuple[str, ...], scenario: tuple[str, ...], render: bool, out: Path | None) -> None:
    """Measure what freeze-proxy costs, on this machine."""
    if (quick or scenario) and out is None:
        raise click.UsageError("A partial run must not replace the results in the repository: give --out DIR.")
    end_on_sigterm()
    console = Console(stderr=True)
    latest = out / "latest.json" if out else ROOT / "bench/results/latest.json"
    page = out / "benchmarks.md" if out else ROOT / "docs/benchmarks.md"
    results: dict[str, Any] = {"quick": quick, "machine": {}}
    if (only or render) and latest.exists():
        results |= json.loads(latest.read_text())
        results["quick"] = results["quick"] or quick
    try:
        for part in () if render else only or PARTS:
            _measure(part, quick, scenario, results, console)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    results["goals"] = [goal.as_json() for goal in report.goals(results)]
    latest.parent.mkdir(parents=True, exist_ok=True)
    latest.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    without = report.write(results, page, page.parent / "images")
    if without:
        console.print(without)
    _show(results, console)
    console.print(f"{latest}\n{page}", highlight=False)


def _measure(part: str, quick: bool, scenario: tuple[str, ...], results: dict[str, Any], console: Console) -> None:
    machine = facts()
    last = ""
    with console.status(f"{part} …") as status:

        def tell(what: str) -> None:
            nonlocal last
            if console.is_terminal:
                status.update(what)
            elif what.partition(":")[0] != last:
                last = what.partition(":")[0]
                console.print(last, highlight=False)

        if part == "relay":
            results[part] = relay.run(quick, tell, scenario)
        else:
            results[part] = PARTS[part](quick, tell)
    results["machine"][part] = machine


def _show(results: dict[str, Any], console: Console) -> None:
    for goal in report.goals(results):
        mark = {True: "[green]reached [/]", False: "[red]missed  [/]", None: "[dim]unknown [/]"}[goal.met]
        console.print(f"{mark} {goal.what}: {goal.measured}, goal {goal.limit}", highlight=False)


if __name__ == "__main__":
    main()
