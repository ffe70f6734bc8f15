"""The closed division takes no retrained model, wants three scenarios, and 99 % of the reference accuracy."""

from collections.abc import Iterator

from tools.submission.work import Work

REQUIRED = {"edge": ("SingleStream", "MultiStream", "Offline"), "datacenter": ("Server", "Offline")}
LEAST = 0.7646 * 0.99


def find(work: Work) -> Iterator[str]:
    if work.plan.division != "closed":
        return
    if str(work.measurements.get("retraining", "")).lower() not in ("no", "false"):
        yield "the model is retrained, which belongs in the open division"
    required = REQUIRED[work.plan.suite]
    for name in required:
        if name not in work.scenarios:
            yield f"{name} is missing, and closed {work.plan.suite} wants it"
    for name in work.scenarios:
        if name not in required:
            yield f"{name} is no scenario of closed {work.plan.suite}"
    for run in work.runs("accuracy"):
        good, total = run.correct()
        if good < LEAST * total:
            yield f"{run.name}: {good / total:.3%} are right, and {LEAST:.3%} are the least"
