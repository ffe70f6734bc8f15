"""TEST01: what a timed run answers is what the accuracy run answered, sample by sample."""

from collections.abc import Iterator

from tools.submission.work import Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs("TEST01"):
        accuracy = work.scenarios[run.scenario].get("accuracy")
        if accuracy is None:
            continue
        count = 1 + max(int(accuracy.log.indices.max(initial=-1)), int(run.log.indices.max(initial=-1)))
        answers, _ = accuracy.log.predictions(count)
        differing = int((answers[run.log.indices] != run.log.classes).sum())
        if len(run.log.indices) == 0:
            yield f"{run.name}: its log has no prediction to compare; run it again with its audit.config"
        elif differing:
            yield f"{run.name}: {differing:,} of {len(run.log.indices):,} predictions are not the accuracy run's"
