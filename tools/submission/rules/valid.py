"""LoadGen calls every timed run VALID."""

from collections.abc import Iterator

from tools.submission.work import TIMED, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        if not run.result.valid:
            reasons = "; ".join(f"{reason.what}: {reason.remedy}" for reason in run.result.reasons)
            yield f"{run.name} is INVALID: {reasons}"
