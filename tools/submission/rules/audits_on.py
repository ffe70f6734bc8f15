"""An audit's settings held in its own run, and in no other."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.submission.work import TIMED, Work


def find(work: Work) -> Iterator[str]:
    for run in work.runs(*TIMED):
        settings = run.result.settings
        held = {"TEST01": _logs_answers(settings), "TEST04": bool(settings.get("performance_issue_same"))}
        for audit, on in held.items():
            if on and run.kind != audit:
                yield f"{run.name}: the settings of {audit} held in it; remove the audit.config and run it again"
            elif not on and run.kind == audit:
                yield f"{run.name}: its audit.config was not read; run it again"


def _logs_answers(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("accuracy_log_sampling_target")) and bool(settings.get("accuracy_log_rng_seed"))
