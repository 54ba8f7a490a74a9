"""A run of the demo made up for the tests: two requests, and all as it should be."""

from scripts.demo_record import LINES, Frozen, Request, Run, Tick


def good_run() -> Run:
    """Frozen from 100.1 to 102 and from 104.2 to 107, awake in between and after it; ticks come only then."""
    return Run(
        began=100.0,
        ended=109.0,
        ticks=tuple(
            Tick(number, at)
            for number, at in enumerate([102.0001, 102.5, 103.0, 103.5, 104.0, 107.0001, 107.5, 108.0, 108.5], 1)
        ),
        requests=(
            Request("request 1", 102.0, 102.001, 104.005, 200, LINES),
            Request("request 2", 107.0, 107.001, 109.005, 200, LINES),
        ),
        frozen=(Frozen(100.1, 102.0003, 240.0, 310.0), Frozen(104.2, 107.0003, 230.0, 300.0)),
        exit_code=0,
        report={"requests": 2, "freezer": "cgroup2", "cpu_seconds": {"serving": 0.012, "idle": 0.002}},
    )
