"""The accuracy run covers every image once."""

from collections.abc import Iterator

import numpy as np

from tools.submission.work import Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs("accuracy"):
        reported = int(run.values.get("qsl_reported_total_count", 0))
        wanted = work.limits.samples or reported
        logged = len(np.unique(run.log.indices))
        if reported != wanted or logged != wanted or len(run.log.indices) != wanted:
            yield (
                f"{run.name}: {reported:,} samples, {len(run.log.indices):,} predictions of {logged:,} of them; "
                f"there have to be {wanted:,} of each"
            )
