"""Every scenario has its four runs, each of that scenario and mode."""

from collections.abc import Iterator

from tools.submission.work import KINDS, Work

MODES = dict.fromkeys(KINDS, "PerformanceOnly") | {"accuracy": "AccuracyOnly"}


def find(work: Work) -> Iterator[str]:
    if not work.scenarios:
        yield f"{work.folder}: no run in it; make one with: python -m tools.submission run"
    for name, why in work.broken.items():
        yield f"{name}: {why}"
    for scenario, runs in work.scenarios.items():
        for kind in KINDS:
            if kind not in runs and f"{scenario}/{kind}" not in work.broken:
                yield f"{scenario}/{kind}: there is no such run; run --scenario {scenario} again"
    for run in work.runs():
        found, wanted = (run.result.scenario, run.result.mode), (run.scenario, MODES[run.kind])
        if found != wanted:
            yield f"{run.name}: its logs are of {' in '.join(found)}, not of {' in '.join(wanted)}"
