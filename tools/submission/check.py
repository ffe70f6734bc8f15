"""All rules over a folder of runs, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import PipelineError
from tools.submission.rules import RULES
from tools.submission.work import Work

READY, FAULTY, ON_TRIAL = 0, 1, 3

WAIVED = (
    "performance and audit runs of 600 s",
    "Offline queries of 24,576 samples",
    "an accuracy run on all 50,000 images",
    "rates of TEST01 and TEST04 near the performance run's",
)
"""What a trial does not keep."""


@dataclass(frozen=True)
class Fault:
    """What breaks a rule; `rule` is its name."""

    rule: str
    what: str


def find_faults(work: Work) -> list[Fault]:
    """Every fault of `work`, rule by rule."""
    faults: list[Fault] = []
    for name, rule in RULES.items():
        try:
            faults += [Fault(name, what) for what in rule(work)]
        except PipelineError as error:
            faults.append(Fault(name, str(error)))
    return faults


def report(work: Work, say: Callable[[str], None]) -> int:
    """Say what is wrong; returns READY, FAULTY or, for a trial with nothing wrong but its size, ON_TRIAL."""
    faults = find_faults(work)
    for fault in faults:
        say(f"{fault.rule}: {fault.what}")
    runs = sum(map(len, work.scenarios.values()))
    if faults:
        say(f"NOT READY: {len(faults)} faults in {runs} runs")
        return FAULTY
    if work.plan.trial:
        say(f"TRIAL: {len(RULES)} rules hold for {runs} runs, as far as a trial keeps them; it lacks:")
        for waived in WAIVED:
            say(f"  {waived}")
        return ON_TRIAL
    say(f"READY: {len(RULES)} rules hold for {runs} runs")
    return READY
