"""Early stopping is met where latencies count."""

from collections.abc import Iterator

from tools.submission.work import TIMED, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        if run.scenario != "Offline" and run.values.get("early_stopping_met") is not True:
            more = run.result.more_queries
            yield f"{run.name}: early stopping is not met" + ("" if more is None else f": {more:,} more queries")
