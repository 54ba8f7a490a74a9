"""From results to ``docs/benchmarks.md`` and its pictures, with a table of what was to be reached and what was."""

from pathlib import Path
from typing import Any

Results = dict[str, Any]

MINE, NGINX, TUNED, GO, GO_POOL = "relay", "nginx", "nginx-buffers", "go", "go-pool"


# The goals.


class Goal:
    """One goal: what, its limit and what was measured in words, and whether that is enough (``None``: unknown)."""

    def __init__(self, what: str, limit: str, measured: str = "not measured", met: bool | None = None) -> None:
        self.what = what
        self.limit = limit
        self.measured = measured
        self.met = met

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return {"goal": self.what, "limit": self.limit, "measured": self.measured, "met": self.met}


def _cpu(results: Results, scenario: str, candidate: str) -> float | None:
    try:
        value: float = results["relay"]["scenarios"][scenario]["candidates"][candidate]["cpu_us"]["median"]
    except KeyError:
        return None
    return value


def _ratio(results: Results, scenario: str, other: str, what: str, limit: float) -> Goal:
    mine, theirs = _cpu(results, scenario, MINE), _cpu(results, scenario, other)
    words = f"≤ {limit:g} × {'nginx' if other == NGINX else 'the Go proxy'}'s"
    if mine is None or theirs is None:
        return Goal(what, words)
    ratio = mine / theirs
    return Goal(what, words, f"{ratio:.2f} × ({mine:.1f} to {theirs:.1f} µs)", ratio <= limit)


def goals(results: Results) -> list[Goal]:
    """All goals, in the order in which they were set."""
    cpu = "CPU per request, small responses, 16 connections"
    listed = [
        _ratio(results, "small-16", NGINX, cpu, 1.0),
        _ratio(results, "small-16", GO, cpu, 0.35),
        _ratio(results, "64k", NGINX, "CPU per request, 64 KiB responses", 0.8),
        _ratio(results, "1m", NGINX, "CPU per request, 1 MiB responses", 0.8),
    ]
    memory = Goal("RSS of the relay alone, after all loads", "≤ 10 MiB")
    start = Goal("start of the relay alone until it listens", "≤ 30 ms")
    if "relay" in results:
        mib = results["relay"]["memory_kib"][MINE]["rss"] / 1024
        memory = Goal(memory.what, memory.limit, f"{mib:.2f} MiB", mib <= 10)
        took = results["relay"]["start_ms"][MINE]["median"]
        start = Goal(start.what, start.limit, f"{took:.1f} ms", took <= 30)
    wake = "first byte from a frozen server, above the same request awake (cgroup v2)"
    median, tail = Goal(wake, "p50 ≤ 0.4 ms"), Goal(wake, "p99 ≤ 2 ms")
    if "cgroup2" in results.get("wake", {}).get("freezers", {}):
        above = results["wake"]["freezers"]["cgroup2"]["above_awake"]
        median = Goal(wake, median.limit, f"{above['p50'] / 1000:.2f} ms", above["p50"] <= 400)
        tail = Goal(wake, tail.limit, f"{above['p99'] / 1000:.2f} ms", above["p99"] <= 2000)
    flight = Goal("in flight after a million mixed exchanges and their aborts", "exactly 0")
    if "soak" in results:
        soak = results["soak"]
        left, whole = soak["relay"]["in_flight"], soak["completed"]
        words = f"{left} after {whole:,} and {soak['aborted_connections']:,} aborts, {len(soak['lost'])} responses lost"
        enough = whole >= 1_000_000 or left or soak["lost"]
        flight = Goal(flight.what, flight.limit, words, left == 0 and not soak["lost"] if enough else None)
    daemon, webhook = results.get("daemon", {}), results.get("webhook", {})
    ambient = _ambient_goals(results.get("ambient", {}), results.get("machine", {}).get("ambient", {}))
    node = _node_goals(results.get("ambient-node", {}), results.get("machine", {}).get("ambient-node", {}))
    sidecar = _sidecar_goals(results.get("sidecar", {}))
    ours = [*listed, memory, start, median, tail, flight]
    return [*ours, *_daemon_goals(daemon), *sidecar, *_webhook_goals(webhook), *ambient, *node]


def _sidecar_goals(sidecar: Results) -> list[Goal]:
    """Those of the sidecar, in a pod with a network of its own, and a daemon on the node."""
    memory = Goal("RSS of the sidecar after a million requests", "≤ 10 MiB")
    start = Goal("start of the sidecar in its image until the data port listens", "≤ 40 ms")
    added = "added to the first request after idle: sidecar, daemon, real container"
    median, tail = Goal(added, "p50 ≤ 0.6 ms"), Goal(added, "p99 ≤ 3 ms")
    cpu = Goal("CPU a request through the sidecar awake, small responses, 16 connections", "≤ 1.05 × the relay alone's")
    if "wake" in sidecar:
        mib, requests = sidecar["memory_kib"]["after"]["Rss"] / 1024, sidecar["requests"]
        memory.measured = f"{mib:.2f} MiB after {requests:,.0f}"
        memory.met = mib <= 10 if requests >= 1_000_000 else None
        start.measured, start.met = f"{sidecar['start_ms']['median']:.1f} ms", sidecar["start_ms"]["median"] <= 40
        above = sidecar["wake"]["above_awake"]
        median.measured, median.met = f"{above['p50'] / 1000:.2f} ms", above["p50"] <= 600
        tail.measured, tail.met = f"{above['p99'] / 1000:.2f} ms", above["p99"] <= 3000
        awake = sidecar["awake"]
        ratio, ours, alone = (awake[name]["median"] for name in ("ratio", "sidecar", "relay"))
        cpu.measured, cpu.met = f"{ratio:.2f} × ({ours:.1f} to {alone:.1f} µs)", ratio <= 1.05
    return [memory, start, median, tail, cpu]


def _daemon_goals(daemon: Results) -> list[Goal]:
    """Those of the node daemon, as a node is that it is meant for: with another container frozen."""
    thaw = (
        "daemon, request to acknowledged thaw of a known pod on an open connection (in brackets: none other is frozen)"
    )
    median, tail = Goal(thaw, "p50 ≤ 0.3 ms"), Goal(thaw, "p99 ≤ 2 ms")
    ratio = Goal("the same through containerd's Tasks API (in brackets: likewise)", "≥ 25 × the daemon's p50")
    first = Goal("daemon, an unknown pod's first freeze, beside the API server's own time", "≤ 25 ms")
    load = Goal("daemon, 1000 containers, 2000 transitions a second, on one core", "p99 ≤ 5 ms, nothing lost")
    memory = Goal("RSS of the daemon with 250 known pods, each with connection and lease", "≤ 45 MiB")
    if "ways" in daemon:
        ways = daemon["ways"]
        ours = {when: ways[when]["daemon"]["thaw"] for when in ways}
        for goal, point, limit in ((median, "p50", 300), (tail, "p99", 2000)):
            among, alone = ours["among"][point], ours["alone"][point]
            words = f"{among / 1000:.2f} ms ({alone / 1000:.2f})"
            goal.measured, goal.met = words, among <= limit
        theirs = {when: ways[when]["tasks"]["thaw"]["p50"] for when in ways}
        among, alone = (theirs[when] / ours[when]["p50"] for when in ("among", "alone"))
        ratio.measured = f"{among:.1f} × ({alone:.1f}): {theirs['among'] / 1000:.1f} ms ({theirs['alone'] / 1000:.1f})"
        ratio.met = among >= 25
        whole, review = daemon["first"]["freeze"], daemon["first"]["review"]["p50"]
        first.measured = (
            f"p50 {(whole['p50'] - review) / 1000:.1f} ms, p99 {(whole['p99'] - review) / 1000:.1f} ms, "
            f"beside {review / 1000:.1f} ms"
        )
        first.met = whole["p50"] - review <= 25_000
    if "pods" in daemon.get("loads", {}):
        one = daemon["loads"]["pods"]
        whole = one["seconds"] >= 59 and one["transitions_s"] >= 0.999 * daemon["rate"]
        wrong = one["lost"] + len(one["wrong"]) + one["differ"]
        load.measured = (
            f"p99 {one['all']['p99'] / 1000:.2f} ms, {wrong} lost of {one['sent']:,} in {one['seconds']:.0f} s, "
            f"{one['cpu_share'] * 100:.0f} % of the core"
        )
        load.met = (one["all"]["p99"] <= 5000 and not wrong) if whole or wrong else None
    if "memory" in daemon:
        plain, optimised = (
            daemon["memory"][how]["memory_kib"]["after"]["daemon"]["Rss"] / 1024 for how in ("plain", "optimised")
        )
        memory.measured = f"{plain:.1f} MiB ({optimised:.1f} with python -OO)"
        memory.met = plain <= 45 if daemon["memory"]["plain"]["pods"] >= 250 else None
    return [median, tail, ratio, load, memory, first]


def _webhook_goals(webhook: Results) -> list[Goal]:
    """Those of the webhook, asked as an API server asks."""
    cpu = Goal("webhook, CPU a review", "≤ 2 ms")
    tail = Goal("webhook, 100 reviews a second, on one core", "p99 ≤ 20 ms")
    if webhook:
        load = webhook["loads"]["kept"]
        cpu.measured = f"{load['cpu_us'] / 1000:.2f} ms"
        cpu.met = load["cpu_us"] <= 2000
        tail.measured = f"p99 {load['ms']['p99']:.1f} ms, {len(load['wrong'])} wrong"
        tail.met = load["ms"]["p99"] <= 20 and not load["wrong"] if webhook["seconds"] >= 30 else None
    return [cpu, tail]


def _ambient_goals(ambient: Results, machine: Results) -> list[Goal]:
    """Those of ambient, beside no proxy in the same run; a busy machine tells nothing of its times."""
    plain = Goal("ambient, packets that wake (source a): p50 of a request, 1 connection", "≤ 1.02 × no proxy's")
    middle = Goal("ambient, exchanges counted (source b): p50 of a request, 1 connection", "≤ 1.02 × no proxy's")
    cpu = Goal("the same, CPU a request in all, 16 connections", "≤ 6 µs more than without")
    first, tail = (Goal("ambient, first byte from a frozen server, above awake", words) for words in _AMBIENT_WAKE)
    memory = Goal("ambient, memory a server, in freeze-proxy and in the kernel", "≤ 100 KiB")
    quiet = Goal("ambient, 1000 frozen servers", "no CPU time that can be measured")
    if ambient:
        ways = ambient["awake"]["loads"]["small-1"]["ways"]
        for goal, name in ((plain, "wake"), (middle, "observe")):
            ratio = ways[name]["p50_us"]["median"] / ways["direct"]["p50_us"]["median"]
            goal.measured = f"{ratio:.2f} × ({ways[name]['p50_us']['median']:.0f} µs)"
            goal.met = ratio <= 1.02
        more = ambient["awake"]["loads"]["small-16"]["ways"]["observe"]["more_cpu_us"]
        cpu.measured, cpu.met = f"{more:.1f} µs", more <= 6
        above, unhalted = (ambient[which]["above_awake"] for which in ("wake", "wake_unhalted"))
        for goal, point, limit in ((first, "p50", 200), (tail, "p99", 1500)):
            goal.measured = f"{above[point] / 1000:.2f} ms; {unhalted[point] / 1000:.2f} where no processor halts"
            goal.met = above[point] <= limit
        if machine.get("load_before", 0) > machine.get("cores", 0):
            for goal in (plain, middle, cpu, first, tail):
                goal.measured, goal.met = f"{goal.measured}, on a busy machine", None
        crowd = ambient["crowd"]
        kib = crowd["kib_each"] + max(crowd["kernel_kib_each"].values())
        memory.measured, memory.met = f"{kib:.0f} KiB", kib <= 100
        quiet.measured = f"{crowd['cpu_share'] * 100:.3f} % of a core"
        quiet.met = crowd["cpu_share"] < 0.0005 if crowd["servers"] >= 1000 else None
    return [plain, middle, cpu, first, tail, memory, quiet]


def _node_goals(node: Results, machine: Results) -> list[Goal]:
    """Those of ambient, where the daemon of a node does it for a thousand pods."""
    first, tail = (Goal("ambient pods, first byte from a frozen one, above awake", words) for words in _AMBIENT_WAKE)
    memory = Goal("ambient pods, memory each in the daemon", "≤ 100 KiB")
    quiet = Goal("ambient pods, 1000 frozen ones", "no CPU time of the daemon's that can be measured")
    others = Goal("ambient pods, one that is woken costs the others", "nothing")
    if node:
        # Of a pod with queue-proxy, above one that has been awake for as long without a request.
        both = [node["observed"]["above_awake"], node["counted"]["above_rested"]]
        for goal, point, limit in ((first, "p50", 200), (tail, "p99", 1500)):
            observed, counted = (above[point] for above in both)
            goal.measured = f"{observed / 1000:.2f} ms; with queue-proxy {counted / 1000:.2f}"
            goal.met = max(observed, counted) <= limit
            if machine.get("load_before", 0) > machine.get("cores", 0):
                goal.measured, goal.met = f"{goal.measured}, on a busy machine", None
        memory.measured, memory.met = f"{node['kib_each']:.0f} KiB", node["kib_each"] <= 100
        more = node["cpu_frozen"] - node["cpu_without"]
        quiet.measured = f"{node['cpu_frozen'] * 100:.2f} % of a core, {node['cpu_without'] * 100:.2f} without a pod"
        quiet.met = more < 0.0005 if node["pods"] >= 1000 else None
        cpu, woken = node["others"]["cpu_us"], node["others"]["woken"]
        others.measured, others.met = f"{cpu} µs of CPU time, {woken} wake-ups", not cpu and not woken
    return [first, tail, memory, quiet, others]


_AMBIENT_WAKE = ("p50 ≤ 0.2 ms", "p99 ≤ 1.5 ms")


# The words.


def _span(figure: dict[str, float], digits: int) -> str:
    low, high = f"{figure['min']:,.{digits}f}", f"{figure['max']:,.{digits}f}"
    return f"{figure['median']:,.{digits}f} <sub>{low} – {high}</sub>"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["--:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _conditions(machine: Results, taken: str) -> str:
    kind = "virtual machine" if machine["virtual"] else "machine"
    busy = " **It was busy with other things: times are longer than they need be.**"
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in machine["versions"].items())
    return (
        f"{taken}, on a {kind} with {machine['cores']} cores ({machine['cpu']}) and {machine['memory_gib']} GiB, "
        f"{machine['system']}, Linux {machine['kernel']}; load average before: {machine['load_before']:.2f}."
        f"{busy if machine['load_before'] > 2 * machine['cores'] else ''} "
        f"{versions}."
    )


def _goals(results: Results) -> str:
    words = {True: "yes", False: "**no**", None: "unknown"}
    rows = [[goal.what, goal.limit, goal.measured, words[goal.met]] for goal in goals(results)]
    table = _table(["What", "Goal", "Measured", "Reached"], rows)
    others = []
    for scenario, other, words_for in _FOR_COMPARISON:
        mine, theirs = _cpu(results, scenario, MINE), _cpu(results, scenario, other)
        if mine is not None and theirs is not None:
            others.append(f"{words_for} {mine / theirs:.2f} ×")
    if others:
        table += f"\n\nNot goals, but to be fair to the others, CPU per request against: {'; '.join(others)}."
    return table


_FOR_COMPARISON = (
    ("varied", NGINX, "nginx, small responses, no two heads alike:"),
    ("small-16", GO_POOL, "the Go proxy with 256 idle connections, small responses:"),
    ("64k", TUNED, "nginx with large buffers, 64 KiB:"),
    ("1m", TUNED, "nginx with large buffers, 1 MiB:"),
    ("close", NGINX, "nginx, a connection for each request:"),
)


def _relay(relay: Results) -> str:
    titles = relay["titles"]
    parts = [
        "## The relay beside other proxies\n",
        f"The proxy runs alone on core {relay['proxy_core']}; the load (wrk, one thread) and the backend (nginx, one "
        f"worker, `return 200` and files in memory) share core {relay['load_core']}. {relay['rounds']} rounds of "
        f"{relay['seconds']} s each; every round takes all candidates through all loads, in rotated order. Given is "
        "the median over the rounds, with the smallest and the largest in small print. CPU is the processor time of "
        "all the proxy's processes (user and system, by the kernel's nanosecond clock), divided by the requests that "
        "wrk saw answered. Latencies are those of a saturated proxy: the connections wait for each other.\n",
        "- **freeze-proxy** is the relay alone, as a sidecar runs it: the standard library's parts that it needs and "
        f"no more, `{relay['interpreter']} -I -S`, from compiled bytecode. *Gate at work*: the real gate, grace 100 "
        "ms, which sees each request begin and end and never finds the server idle. *Not freezing*: `--mode off`.",
        "- **nginx**: one worker, HTTP/1.1 and up to 256 kept connections upstream, no access log, connections never "
        "recycled. Its buffers are left at their defaults, which decide how it does with large responses: what does "
        "not fit goes through a temporary file (here in memory). *Large buffers* shows it with 2 MiB a connection "
        "instead, and no file.",
        "- **HAProxy**: one thread, HTTP mode, kept connections shared (`http-reuse always`).",
        "- **Go ReverseProxy**: `net/http/httputil`, one core, every request through a channel to a goroutine that "
        "counts (`bench/goproxy`), standing in for the Go proof of concept: its transport is the default one, which "
        "keeps 2 idle connections. *256 idle connections* shows what that costs.\n",
    ]
    for name, why in relay["missing"].items():
        parts.append(f"{titles[name]} was not measured: {why}\n")
    parts.append("![CPU time a request](images/bench-cpu.svg)\n")
    for scenario in relay["scenarios"].values():
        rows = []
        for name, figures in scenario["candidates"].items():
            cpu = _span(figures["cpu_us"], 1) if "cpu_us" in figures else "–"
            latency = [_span(figures[which], 0) for which in ("p50_us", "p99_us")]
            title = titles[name] + (f" ({figures['errors']} errors)" if figures["errors"] else "")
            rows.append([title, cpu, _span(figures["requests_s"], 0), *latency])
        heads = ["", "CPU µs a request", "requests/s", "p50 µs", "p99 µs"]
        title = scenario["title"]
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{_table(heads, rows)}\n")
    if "close" in relay["scenarios"]:
        parts.append(
            "With a connection for each request freeze-proxy opens one to the server for each as well, because it "
            "changes no byte and shares no connection; the others reuse theirs.\n"
        )
    rows = []
    for name, memory in relay["memory_kib"].items():
        start = relay["start_ms"].get(name)
        fresh = relay["memory_fresh_kib"][name]
        processes = f"{memory['processes']} process{'es' if memory['processes'] > 1 else ''}"
        figures = [f"{fresh['rss'] / 1024:.1f}", f"{memory['rss'] / 1024:.1f}", f"{memory['pss'] / 1024:.1f}"]
        rows.append([f"{titles[name]} ({processes})", *figures, _span(start, 1) if start else "–"])
    heads = [
        "",
        "RSS at start, MiB",
        "RSS after all loads, MiB",
        "of it its own (PSS), MiB",
        "start until listening, ms",
    ]
    parts.append(
        f"### Memory and start-up\n\n![Memory and start-up](images/bench-footprint.svg)\n\n{_table(heads, rows)}\n"
    )
    parts.append(
        f"Start-up is the time from the call that starts the program to the first connection that its port accepts, "
        f"{relay['starts']} starts each, in turns.\n"
    )
    return "\n".join(parts)


def _soak(soak: Results) -> str:
    relay = soak["relay"]
    leaves = ", ".join(f"{how} {count:,}" for how, count in soak["leaves"].items())
    first, last = (kib / 1024 for kib in soak["rss_kib"])
    lost = f"**{len(soak['lost'])}** of the responses that should have come whole did not"
    if not soak["lost"]:
        lost = "All responses that should have come whole did"
    return (
        "## A million exchanges, and their aborts\n\n"
        f"{soak['clients']} clients sent requests of every framing through one relay for {soak['seconds']:.0f} s: GET, "
        "HEAD, POST with a length and chunked, one by one, pipelined and cut into pieces; and left in every way, "
        "half of them in the middle of something. Five times a second all were quiet for 20 ms, so that the gate shut "
        "(its driver here takes its time and fails every tenth thaw) and requests met it shut.\n\n"
        f"{soak['completed']:,} exchanges came to their end, {soak['aborted_connections']:,} connections were aborted; "
        f"the gate shut {relay['freezes']:,} times, and {relay['waited_for']:,} times requests waited for it. {lost}. "
        f"Afterwards **{relay['in_flight']} exchanges in flight**, {relay['connections']} connections open, the gate "
        f"{relay['state']}; RSS {first:.1f} MiB before, {last:.1f} MiB after.\n\n"
        f"How connections ended: {leaves}.\n"
    )


def _freezers(freezers: Results) -> str:
    rows = []
    for way, measured in freezers["ways"].items():
        for one in measured:
            threads = f"{one['threads']}, {one['busy']} of them busy" if one["busy"] else f"{one['threads']}"
            cells = [f"{_us(one[name]['p50'])} / {_us(one[name]['p99'])}" for name in _FREEZER_FIGURES]
            rows.append([freezers["titles"][way], threads, *cells])
    missing = "".join(
        f"{freezers['titles'][way]} was not measured: {why}\n\n" for way, why in freezers["missing"].items()
    )
    heads = ["", "threads", "freeze: to standing still", "thaw: the call", "thaw: to an answer"]
    return (
        "## Freezing and thawing as such\n\n"
        "One process of so many threads, asleep but for the busy ones, frozen and thawed through freeze-proxy's own "
        "freezers. The target on one core, the measuring on the other, looking without pause. *Standing still* is what "
        "the kernel says; *an answer* is the first byte from the target, to one that had been waiting for it while it "
        "was frozen: with busy threads it has to wait for its turn on the core, and for the interpreter's. "
        "p50 / p99, in µs.\n\n"
        f"![Freezing and thawing](images/bench-freezers.svg)\n\n{missing}{_table(heads, rows)}\n"
    )


_FREEZER_FIGURES = ("frozen_us", "thaw_call_us", "running_us")
_FREEZER_NAMES = {"cgroup2": "cgroup v2", "cgroup1": "cgroup v1"}


def _us(value: float) -> str:
    return f"{value:,.0f}"


def _wake(wake: Results) -> str:
    parts = [
        "## What a request pays for a frozen server\n",
        f"`freeze-proxy run --grace {wake['grace']}` before a small server of one process. As soon as the kernel says "
        "that it stands still, and a random moment later, a request is sent and the first byte of the response timed; "
        "then the same request again, to the server now awake. Half of the wakes come on a kept connection, half on "
        "new ones (connecting counts). *Rested* is the same request, after the same pause, through a second "
        "freeze-proxy that does not freeze: it shows how much of the price is the pause alone, as idle processors "
        "answer later.\n",
        "![First byte from a frozen server](images/bench-wake.svg)\n",
    ]
    for freezer, why in wake["missing"].items():
        parts.append(f"{_FREEZER_NAMES[freezer]} was not measured: {why}\n")
    rows = []
    for freezer, measured in wake["freezers"].items():
        for kind, figures in measured["kinds"].items():
            cells = [
                f"{_us(figures[when]['p50'])} / {_us(figures[when]['p99'])}" for when in ("frozen", "awake", "rested")
            ]
            name = {"kept": "kept connection", "new": "new connections"}[kind]
            rows.append([f"{_FREEZER_NAMES[freezer]}, {name}", f"{figures['frozen']['count']:,}", *cells])
    heads = ["first byte, µs, p50 / p99", "wakes", "frozen", "awake", "rested"]
    parts.append(_table(heads, rows) + "\n")
    rows = []
    for freezer, measured in wake["freezers"].items():
        for base, words in (("above_awake", "awake"), ("above_rested", "rested")):
            above = measured[base]
            name = f"{_FREEZER_NAMES[freezer]}, above {words}"
            rows.append([name, *(_us(above[which]) for which in ("p50", "p99", "max"))])
    parts.append("How far each first byte from the frozen server came above the median of the same request:\n")
    parts.append(_table(["µs", "p50", "p99", "max"], rows) + "\n")
    return "\n".join(parts)


def _sidecar(sidecar: Results) -> str:
    if "missing" in sidecar:
        return f"## The sidecar in a pod\n\nIt was not measured: {sidecar['missing']}\n"
    wake, awake = sidecar["wake"], sidecar["awake"]
    rows = []
    for kind, taken in wake["kinds"].items():
        cells = [f"{_us(taken[when]['p50'])} / {_us(taken[when]['p99'])}" for when in ("frozen", "awake", "rested")]
        rows.append(
            [{"kept": "kept connection", "new": "new connections"}[kind], f"{taken['frozen']['count']:,}", *cells]
        )
    above = [
        [f"above {words}", *(_us(wake[base][which]) for which in ("p50", "p99", "max"))]
        for base, words in (("above_awake", "awake"), ("above_rested", "rested"))
    ]
    fresh, after = (sidecar["memory_kib"][when]["Rss"] / 1024 for when in ("fresh", "after"))
    return "\n".join(
        [
            "## The sidecar in a pod\n",
            "Pods on a real containerd, each with a network of its own, made over CRI as a kubelet makes them: a "
            "server, and the sidecar from its image, with every capability dropped and a read-only root. The daemon is "
            "on the node, and another pod is frozen besides. The client is on the node, and comes in through the pod's "
            "network (a veth pair).\n",
            f"The first request after idle, as above for `freeze-proxy run`; grace {sidecar['grace']}, "
            f"{_FREEZER_NAMES[wake['where']]}. *Rested* is a pod whose sidecar does not freeze.\n",
            _table(["first byte, µs, p50 / p99", "wakes", "frozen", "awake", "rested"], rows) + "\n",
            _table(["µs", "p50", "p99", "max"], above) + "\n",
            f"Awake, in {awake['rounds']} rounds of {awake['seconds']} s each, in turns with the relay alone in "
            f"another pod (small responses, 16 connections): CPU µs a request {_span(awake['sidecar'], 1)} through the "
            f"sidecar, {_span(awake['relay'], 1)} through the relay; of a round {_span(awake['ratio'], 3)} ×.\n",
            f"RSS {fresh:.2f} MiB before these loads, {after:.2f} MiB after them and {sidecar['requests']:,.0f} "
            f"requests. From the start of the process in its image until the data port listens: "
            f"{_span(sidecar['start_ms'], 1)} ms, {sidecar['start_ms']['times']} starts.\n",
        ]
    )


_PAUSING = {"among": "another container is frozen besides", "alone": "nothing else is frozen"}


def _daemon(daemon: Results) -> str:
    parts = ["## The daemon of a node\n"]
    parts += [f"Not everything was measured: {why}\n" for why in daemon["missing"].values()]
    if "ways" in daemon:
        parts += _pausing(daemon)
    if "loads" in daemon:
        parts += _thousand(daemon)
    return "\n".join(parts)


def _pausing(daemon: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in daemon["versions"].items())
    parts = [
        "### Pausing and resuming a container, in every way\n",
        f"Real containers ({versions}), made over CRI with the labels and cgroups that a kubelet gives them, or by "
        "`docker run`; each is a shell that wakes up every 10 ms, and each way has its own. In each of "
        f"{daemon['rounds']} rounds all ways take their turn, 1 to 3 ms after the one before. A client that waits for "
        "each answer times it from its write to its read. It keeps a connection, a channel or a file open, but for "
        "`runc`, which has to be started. All report a pause when everything stands still, and after each the kernel "
        "was asked whether it is so. Nothing is bound to a core. Times in µs, p50 / p99.\n",
        "![Pausing and resuming a container](images/bench-pausing.svg)\n",
    ]
    for name, why in daemon["missing_ways"].items():
        parts.append(f"{name} was not measured: {why}\n")
    for when, ways in daemon["ways"].items():
        ours = ways["daemon"]["thaw"]["p50"]
        rows = []
        for name, figures in ways.items():
            cells = [f"{_us(figures[one]['p50'])} / {_us(figures[one]['p99'])}" for one in ("freeze", "thaw")]
            ratio = figures["thaw"]["p50"] / ours
            rows.append(
                [
                    daemon["titles"][name],
                    f"{figures['thaw']['count']:,}",
                    *cells,
                    f"{ratio:.{1 if ratio > 2 else 2}f} ×",
                ]
            )
        heads = [f"{_PAUSING[when]}", "times", "pause", "resume", "resume beside the daemon's"]
        parts.append(_table(heads, rows) + "\n")
    parts.append(
        "Whether anything else is frozen matters on cgroup v1: there the kernel rewrites its own code, and interrupts "
        "all cores for it, when the first cgroup of the machine is frozen and when the last one is thawed. A node on "
        "which freeze-proxy is of use has others frozen.\n"
    )
    parts.append(
        "The daemon's freeze takes longer than the write since it looks again only after a millisecond whether all "
        "stands still; a thaw that comes meanwhile need not wait for that.\n"
    )
    first = daemon["first"]
    parts.append(
        f"**A pod that the daemon has never heard of**: its first freeze took {_us(first['freeze']['p50'])} µs in the "
        f"middle and {_us(first['freeze']['max'])} at most ({first['freeze']['count']} pods of two containers), from "
        "connecting on, the token's review and the look-up over CRI included. A review by the stand-in for the API "
        f"server alone, asked over a connection that was open, took {_us(first['review']['p50'])} µs in the middle and "
        f"{_us(first['review']['max'])} at most.\n"
    )
    return parts


def _thousand(daemon: Results) -> list[str]:
    loads = daemon["loads"]
    parts = [
        "### A thousand containers\n",
        "A thousand real cgroups with a process asleep in each, named and placed as a kubelet's containers are; a "
        "stand-in for the runtime tells the daemon of them over CRI. The daemon has one core, the load the other. The "
        f"load is an open loop of {daemon['rate']:,} transitions a second in all, freezes and thaws in turns, half of "
        "the pods frozen at any time; every pod has a connection with a lease. Latency counts from the moment at which "
        "a request was due, so a late client counts too; how late it was is given beside. Afterwards the kernel was "
        "asked for the state of each cgroup, and compared with what was last asked for; and when the connections were "
        "closed, all ran again.\n",
    ]
    rows = [
        [
            f"{load['words']}, {load['seconds']:.0f} s",
            f"{load['transitions_s']:,.0f}",
            *(f"{_us(load[which]['p50'])} / {_us(load[which]['p99'])}" for which in ("freeze", "thaw")),
            f"{_us(load['all']['p99.9'])} / {_us(load['all']['max'])}",
            f"{_us(load['behind']['p50'])} / {_us(load['behind']['p99'])}",
            f"{load['lost'] + len(load['wrong'])}",
            f"{load['differ']}",
            f"{load['cpu_share'] * 100:.0f} %",
        ]
        for load in loads.values()
    ]
    heads = [
        "",
        "transitions/s",
        "freeze, µs, p50 / p99",
        "thaw, µs, p50 / p99",
        "both, p99.9 / max",
        "client late, p50 / p99",
        "answers lost or wrong",
        "states wrong",
        "of its core",
    ]
    parts.append(_table(heads, rows) + "\n")
    rows = []
    for load in (*daemon["memory"].values(), *loads.values()):
        for when, words in (("fresh", "none known"), ("after", "all known, after the load")):
            memory = load["memory_kib"][when]
            cells = [f"{memory[who][kind] / 1024:.1f}" for who in ("daemon", "supervisor") for kind in ("Rss", "Pss")]
            rows.append([f"{load['words']}, {words}", *cells])
    heads = ["MiB", "daemon, RSS", "PSS", "supervisor, RSS", "PSS"]
    parts.append(_table(heads, rows) + "\n")
    parts.append(
        "Memory was measured while all connections were open and half of the pods frozen, after a scrape of the "
        "metrics. A pod of a Knative service has a container that is frozen and its queue-proxy; it was under 500 "
        "transitions a second for two seconds. `-OO` leaves out what is in memory for people, the docstrings, and "
        "assertions.\n"
    )
    return parts


def _webhook(webhook: Results) -> str:
    sizes = [size / 1024 for size in webhook["bytes"]]
    memory = {when: webhook["memory_kib"][when]["Rss"] / 1024 for when in ("fresh", "after")}
    heads = ["", "CPU a review, ms", "answered after, ms, p50", "p99", "max", "client late, ms, p99", "wrong"]
    rows = [
        [
            {"kept": f"{webhook['connections']} connections that stay", "new": "a new connection for each"}[name],
            f"{load['cpu_us'] / 1000:.2f}",
            *(f"{load['ms'][what]:.1f}" for what in ("p50", "p99", "max")),
            f"{load['late_ms']['p99']:.1f}",
            str(len(load["wrong"])),
        ]
        for name, load in webhook["loads"].items()
    ]
    return "\n".join(
        [
            "## The webhook\n",
            f"`freeze-proxy webhook` on one core, the load on the other: an open loop of {webhook['rate']} reviews a "
            f"second for {webhook['seconds']} s, over TLS, of the samples of Knative's pods in turns "
            f"({min(sizes):.1f} to {max(sizes):.1f} KiB each). The answer's time counts from the moment at which the "
            "review was due. CPU is all that the process took in that time, TLS and the log included, divided by the "
            "reviews."
            + (
                " Other work ran beside; webhook and load went before it (SCHED_RR)."
                if webhook["before_all_else"]
                else ""
            )
            + "\n",
            _table(heads, rows) + "\n",
            f"It is ready {webhook['start_ms']:,.0f} ms after its start, its certificate made and written down, and "
            f"takes {memory['fresh']:.1f} MiB (RSS); after the reviews {memory['after']:.1f}.\n",
        ]
    )


_AMBIENT_WAYS = {
    "direct": "no proxy",
    "wake": "ambient, packets that wake are noticed (source a)",
    "observe": "ambient, exchanges are counted (source b)",
    "relay": "freeze-proxy run --relay",
    "nginx": "nginx as a proxy",
}


def _ambient(ambient: Results) -> str:
    awake, crowd = ambient["awake"], ambient["crowd"]
    parts = [
        "## Ambient: nothing before the server\n",
        "### Awake\n",
        "The same nginx five times, each reached in another way, on one core; the load (wrk) on the other. "
        f"{awake['rounds']} rounds of a second each, in rotated order; medians over the rounds. CPU is all that wrk, "
        "nginx and freeze-proxy used, divided by the requests: what the program in the kernel takes shows up as "
        "theirs, whose packets it looks at. *More* is the median over the rounds of the difference to no proxy.\n",
    ]
    for load in awake["loads"].values():
        rows = [
            [
                _AMBIENT_WAYS[name],
                _span(way["cpu_us"], 1),
                f"{way['more_cpu_us']:+.1f}",
                _span(way["requests_s"], 0),
                *(_span(way[which], 0) for which in ("p50_us", "p99_us")),
            ]
            for name, way in load["ways"].items()
        ]
        heads = [load["title"], "CPU µs a request, in all", "more", "requests/s", "p50 µs", "p99 µs"]
        parts.append(_table(heads, rows) + "\n")
    rows = [
        [
            {"kept": "kept connection", "new": "new connections"}[kind] + f", {words}",
            f"{figures['frozen']['count']:,}",
            *(f"{_us(figures[when]['p50'])} / {_us(figures[when]['p99'])}" for when in ("frozen", "awake", "rested")),
        ]
        for which, words in (("wake", "processors halt"), ("wake_unhalted", "no processor halts"))
        for kind, figures in ambient[which]["kinds"].items()
    ]
    above, unhalted, rested = (
        ", ".join(f"{_us(ambient[which][than][point])} µs ({point})" for point in ("p50", "p99", "max"))
        for which, than in (("wake", "above_awake"), ("wake_unhalted", "above_awake"), ("wake", "above_rested"))
    )
    parts += [
        "### Waking\n",
        "As above for the relay (*What a request pays for a frozen server*), on cgroup v2, with `--ambient`:\n",
        _table(["first byte, µs, p50 / p99", "wakes", "frozen", "awake", "rested"], rows) + "\n",
        f"Above the median of the same request awake: {above}; where no processor halts, {unhalted}. Above one to a "
        f"server that was never frozen and had the same rest: {rested}.\n",
        "A processor that has nothing to do halts, and that of a virtual machine is fetched back by its host: a server "
        "that rests answers later for that, whether it is frozen or not. *No processor halts*: each has a program to "
        "run that makes way for every other (`SCHED_IDLE`), as on a node with other pods at work.\n",
        "### A thousand frozen servers\n",
        f"{crowd['servers']:,} cgroups with a process asleep in each, frozen and watched by one process, half of them "
        f"in each way. In {crowd['seconds']:.0f} s that process used {crowd['cpu_share'] * 100:.3f} % of a core. Each "
        f"takes {crowd['kib_each']:.1f} KiB of its memory, and the kernel charges for the programs "
        f"{crowd['kernel_kib_each']['wake']:.0f} KiB (source a) or {crowd['kernel_kib_each']['observe']:.0f} (b). From "
        f"a datagram to the watcher's waking: p50 {crowd['notice_us']['alone']['p50']:.0f} µs, p99 "
        f"{crowd['notice_us']['alone']['p99']:.0f}, with one server; {crowd['notice_us']['among']['p50']:.0f} and "
        f"{crowd['notice_us']['among']['p99']:.0f} among all. The others used {crowd['others_cpu_seconds']:.6f} s of "
        "CPU time meanwhile.\n",
    ]
    return "\n".join(parts)


def _ambient_node(node: Results) -> str:
    rows = [
        [
            {"observed": "exchanges counted", "counted": "with queue-proxy"}[source]
            + ("" if kind == "new" else ", kept connection"),
            f"{figures['frozen']['count']:,}",
            *(f"{_us(figures[when]['p50'])} / {_us(figures[when]['p99'])}" for when in ("frozen", "awake", "rested")),
        ]
        for source in ("observed", "counted")
        for kind, figures in node[source]["kinds"].items()
    ]
    above, of_counted, of_rested = (
        " and ".join(f"{_us(node[source][than][which])} µs ({which})" for which in ("p50", "p99"))
        for source, than in (("observed", "above_awake"), ("counted", "above_awake"), ("counted", "above_rested"))
    )
    heard = sorted(node["heard_s"])
    parts = [
        "## Ambient pods: the daemon of a node\n",
        f"{node['pods']:,} cgroups with a server in each, and stand-ins for runtime, API server and queue-proxies. It "
        f"took {node['until_frozen_s']:.0f} s until all were found, watched and frozen. For each the daemon took "
        f"{node['kib_each']:.1f} KiB. While all stood still it used {node['cpu_frozen'] * 100:.2f} % of a core, and "
        f"{node['cpu_without'] * 100:.2f} % before there was one, over {node['seconds']:.0f} s each; queue-proxies "
        f"were asked {node['questions']:,} times.\n",
        _table(["first byte, µs, p50 / p99", "wakes", "frozen", "awake", "rested"], rows) + "\n",
        f"Above the median of the same request awake: {above}. While one was woken again and again, the others used "
        f"{node['others']['cpu_us']} µs of CPU time, and were woken {node['others']['woken']} times.\n",
        "Those with queue-proxy are woken one after another, each after some twenty seconds, when the processors' "
        "caches have forgotten its server as well; the request awake follows at once. What *rested* there is a pod "
        "that nobody freezes and that has had no request for as long. The first byte from a frozen one comes "
        f"{of_rested} later than the median of that; of the same pod's second request, {of_counted} later.\n",
        f"A probe keeps a pod awake for {node['awake_for_a_probe_s']['observed']:.2f} s, with queue-proxy for "
        f"{node['awake_for_a_probe_s']['counted']:.1f} s, the grace of 0.1 s included. A signal to end that nobody has "
        f"announced is heard after {heard[0]:.1f} to {heard[-1]:.1f} s.\n",
    ]
    return "\n".join(parts)


def document(results: Results) -> str:
    """The page, in Markdown."""
    parts = [
        "<!-- Written by `make bench`; what it says comes from bench/results/latest.json. -->\n",
        "# Benchmarks\n",
        "What freeze-proxy costs and how quick it is, by `make bench`. Anyone can run it: it needs Debian's nginx, wrk "
        "and HAProxy, for the Go proxy a Go toolchain, for the freezers root or a delegated cgroup, for the daemon "
        "root, containerd, runc and dockerd. It takes about twenty minutes, on a machine that does nothing else.\n",
    ]
    if results["quick"]:
        parts.append("**A quick run: these figures show that the benchmark works, and no more.**\n")
    parts += ["## Goals\n", _goals(results) + "\n"]
    for name, write in (
        ("relay", _relay),
        ("soak", _soak),
        ("freezers", _freezers),
        ("wake", _wake),
        ("daemon", _daemon),
        ("sidecar", _sidecar),
        ("webhook", _webhook),
        ("ambient", _ambient),
        ("ambient-node", _ambient_node),
    ):
        if name in results:
            parts.append(write(results[name]))
    parts.append("## Conditions\n")
    groups: dict[str, list[str]] = {}
    for name, machine in results["machine"].items():
        groups.setdefault(_conditions(machine, machine["date"]), []).append(name)
    many = len(groups) > 1
    parts += [f"{', '.join(names)}: {words}\n" if many else f"{words}\n" for words, names in groups.items()]
    return "\n".join(parts).rstrip() + "\n"


def write(results: Results, page: Path, images: Path) -> str | None:
    """Write the page and its pictures; returns why there are no pictures, if so."""
    images.mkdir(parents=True, exist_ok=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(document(results))
    try:
        from bench import plots
    except ImportError:
        return "matplotlib is not installed, so there are no pictures."
    plots.write(results, images)
    return None
