"""An Offline query is long enough, in audits too."""

from collections.abc import Iterator

from tools.submission.work import TIMED, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        asked = int(run.result.settings.get("samples_per_query", 0))
        if run.scenario == "Offline" and asked < work.limits.offline_samples:
            yield f"{run.name}: {asked:,} samples, and {work.limits.offline_samples:,} are the least"
