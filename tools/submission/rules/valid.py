"""LoadGen calls every timed run VALID."""

from collections.abc import Iterator

from tools.submission.work import Work


def find(work: Work) -> Iterator[str]:
    yield from filter(None, (run.invalid for run in work.runs()))
