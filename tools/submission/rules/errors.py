"""LoadGen logged no error."""

from collections.abc import Iterator

from tools.submission.work import Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs():
        for error in run.result.errors:
            yield f"{run.name}: LoadGen logged: {error}"
