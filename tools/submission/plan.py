"""What a folder of runs is for: the round, who submits, in which division, on which system."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from pipeline.errors import PipelineError
from pipeline.loadgen.rounds import MIN_DURATION_MS, OFFLINE_SAMPLES, PERFORMANCE_SAMPLES, ROUNDS, SAMPLES
from pipeline.report.json_file import write_json

PLAN, SYSTEM, MEASUREMENTS, CALIBRATION = "submission.json", "system.json", "measurements.json", "calibration.md"
TRIAL = "TRIAL"
DIVISIONS = ("open", "closed")
BENCHMARKS = {"open": "resnet50-int4", "closed": "resnet50"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Plan:
    """The choices of `init`; `trial` makes counts and durations small, and the folder no submission."""

    round: str
    submitter: str
    division: str
    suite: str
    system: str
    trial: bool

    @property
    def benchmark(self) -> str:
        """The model's name in the tree."""
        return BENCHMARKS[self.division]

    def check(self) -> None:
        """Raises PipelineError for what no round takes."""
        for name, value in (("--submitter", self.submitter), ("--system", self.system)):
            if not _NAME.fullmatch(value):
                raise PipelineError(f"{name} {value!r}: it becomes a folder's name; use letters, digits and . _ -")
        suites = ROUNDS[self.round].suites
        if self.suite not in suites:
            raise PipelineError(f"--suite {self.suite}: {self.round} has ResNet-50 in {' and '.join(suites)} only")


@dataclass(frozen=True)
class Limits:
    """What runs have to reach.

    Attributes:
        samples: of the accuracy run; None: those that the run was made on.
        audit: whether the rates of the audits count.
    """

    samples: int | None
    performance_samples: int
    min_duration_ms: int
    offline_samples: int
    audit: bool


OFFICIAL = Limits(SAMPLES, PERFORMANCE_SAMPLES, MIN_DURATION_MS, OFFLINE_SAMPLES, audit=True)
SMALL = Limits(None, PERFORMANCE_SAMPLES, 1, 1, audit=False)


def write_plan(folder: Path, plan: Plan) -> None:
    """Raises PipelineError."""
    write_json(folder / PLAN, asdict(plan))


def read_plan(folder: Path) -> Plan:
    """Raises PipelineError for a folder that `init` has not made."""
    values = read_json(folder / PLAN, "make it with: python -m tools.submission init")
    types = {field.name: bool if field.name == "trial" else str for field in fields(Plan)}
    if set(values) != set(types) or any(type(values[name]) is not kind for name, kind in types.items()):
        raise PipelineError(f"{folder / PLAN}: its fields are {', '.join(types)}; make it again with init")
    plan = Plan(**cast("dict[str, Any]", values))
    if plan.round not in ROUNDS or plan.division not in DIVISIONS:
        raise PipelineError(f"{folder / PLAN}: no such round or division; make it again with init")
    plan.check()
    return plan


def read_json(path: Path, remedy: str) -> dict[str, object]:
    """An object of JSON. Raises PipelineError with the `remedy`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not JSON: {error}; {remedy}") from error
    if not isinstance(values, dict):
        raise PipelineError(f"{path}: not an object of JSON; {remedy}")
    return values
