"""Timed runs last long enough."""

from collections.abc import Iterator

from tools.submission.work import TIMED, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        asked = int(run.result.settings.get("min_duration_ms", 0))
        if asked < work.limits.min_duration_ms:
            yield f"{run.name}: a min_duration of {asked:,} ms, and {work.limits.min_duration_ms:,} ms are the least"
