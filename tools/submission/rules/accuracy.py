"""accuracy.txt and the run's own summary say what the log says, its data read as int32."""

from collections.abc import Iterator

from pipeline.errors import PipelineError
from tools.submission.accuracy import accuracy_line, read_accuracy_line
from tools.submission.work import ACCURACY_TXT, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs("accuracy"):
        good, total = run.correct()
        path = run.folder / ACCURACY_TXT
        try:
            said = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise PipelineError(f"{path}: cannot be read: {error.strerror}; run it again") from error
        if read_accuracy_line(said) != (good, total) or said.splitlines()[0] != accuracy_line(good, total):
            yield f"{path} says {said.strip()[:60]!r}, and the log {accuracy_line(good, total)!r}"
        summed = run.summary.get("accuracy") or {}
        if (summed.get("correct"), summed.get("total")) != (good, total):
            yield f"{run.name}: summary.json has {summed.get('correct')} of {summed.get('total')} right, the log {good}"
