"""TEST01 and TEST04 are as fast as the performance run; TEST04, which repeats one sample, no faster."""

from collections.abc import Iterator

from tools.submission.audits import figure, is_latency, tolerance
from tools.submission.work import Work


def find(work: Work) -> Iterator[str]:
    if not work.limits.audit:
        return
    for run in work.runs("TEST01", "TEST04"):
        performance = work.scenarios[run.scenario].get("performance")
        if performance is None:
            continue
        reference, found = figure(run.scenario, performance.values), figure(run.scenario, run.values)
        share = tolerance(run.scenario, reference)
        ratio = found / reference if reference else 0.0
        if run.kind == "TEST01":
            good = 1 - share <= ratio <= 1 + share
        else:
            good = ratio > 0 and (1 / ratio if is_latency(run.scenario) else ratio) < 1 + share
        if not good:
            yield f"{run.name}: {found:,.1f}, the performance run {reference:,.1f}; over {share:.0%}; run both again"
