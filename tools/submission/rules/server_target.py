"""The Server scenario asks for 99 % within 15 ms."""

from collections.abc import Iterator

from pipeline.loadgen.scenarios import SERVER_LATENCY_NS
from tools.submission.work import TIMED, Work

SHARE = 0.99


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        if run.scenario != "Server":
            continue
        bound, share = (run.result.settings.get(f"target_latency_{name}", 0) for name in ("ns", "percentile"))
        if not 0 < bound <= SERVER_LATENCY_NS or share < SHARE:
            yield f"{run.name}: {share:.2%} within {bound / 1e6:g} ms, and the rules are 99 % within 15 ms"
