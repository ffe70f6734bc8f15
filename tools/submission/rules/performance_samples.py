"""Timed runs draw from enough different samples: as the sample library reported them, whatever the settings say."""

from collections.abc import Iterator

from tools.submission.work import TIMED, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        counts = [int(run.values.get(name, 0)) for name in _NAMES]
        if min(counts) < work.limits.performance_samples:
            yield f"{run.name}: {min(counts):,} performance samples; {work.limits.performance_samples:,} are the least"


_NAMES = ("qsl_reported_performance_count", "effective_performance_sample_count")
