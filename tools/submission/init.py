"""A new folder of runs: the plan, and what is said of the system and of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from int4core.atomic import write_atomically
from pipeline.errors import PipelineError
from pipeline.report.json_file import write_json
from tools.submission.measurements import CALIBRATION_TEXT, describe_model
from tools.submission.plan import CALIBRATION, MEASUREMENTS, PLAN, SYSTEM, Plan, write_plan
from tools.submission.system import describe_system, to_fill_in


def init(folder: Path, plan: Plan, given: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Make `folder`; `given` are fields of the two descriptions. Raises PipelineError."""
    plan.check()
    if (folder / PLAN).exists():
        raise PipelineError(f"{folder / PLAN} is there: name another folder, or remove it")
    system, model = describe_system(plan), describe_model()
    for name, value in given.items():
        if name not in system and name not in model:
            raise PipelineError(f"--set {name}: no such field; they are {', '.join([*system, *model])}")
        (system if name in system else model)[name] = value
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be made: {error.strerror}") from error
    write_json(folder / SYSTEM, system)
    write_json(folder / MEASUREMENTS, model)
    write_atomically(folder / CALIBRATION, CALIBRATION_TEXT.encode())
    write_plan(folder, plan)
    for path, values in ((folder / SYSTEM, system), (folder / MEASUREMENTS, model)):
        for name in to_fill_in(values):
            say(f"{path}: {name}: {values[name]}")
    say(f"{folder / CALIBRATION}: FILL IN")
