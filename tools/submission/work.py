"""A folder of runs as `run` leaves it, read: by scenario the accuracy run, the performance run and two audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.loadgen.results import AccuracyLog, LoadGenResult, find_log, read_accuracy_log, read_detail, read_result
from pipeline.loadgen.scenarios import SCENARIOS
from pipeline.loadgen.summary import FILE_NAME
from tools.submission.plan import MEASUREMENTS, OFFICIAL, SMALL, SYSTEM, Limits, Plan, read_json, read_plan

RUNS = "runs"
KINDS = ("accuracy", "performance", "TEST01", "TEST04")
TIMED = ("performance", "TEST01", "TEST04")
ACCURACY_TXT, COMMAND = "accuracy.txt", "command.txt"


@dataclass(frozen=True, eq=False)
class Run:
    """One run that has ended.

    Attributes:
        kind: one of KINDS.
        values: the detail log's, by key.
        summary: summary.json's.
    """

    folder: Path
    scenario: str
    kind: str
    result: LoadGenResult
    values: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.scenario}/{self.kind}"

    @property
    def invalid(self) -> str | None:
        """That LoadGen does not call a timed run VALID, with each reason and its remedy; None where it does."""
        if self.kind not in TIMED or self.result.valid:
            return None
        reasons = "; ".join(f"{reason.what}: {reason.remedy}" for reason in self.result.reasons)
        return f"{self.name} is INVALID: {reasons or 'its log has no verdict: run it again'}"

    @cached_property
    def log(self) -> AccuracyLog:
        """The predictions that LoadGen logged. Raises PipelineError."""
        return read_accuracy_log(find_log(self.folder, "accuracy.json"))

    def correct(self) -> tuple[int, int]:
        """How many of the samples in the log are right, and how many there are. Raises PipelineError without labels."""
        log = self.log
        if log.samples is None or log.samples.labels is None:
            raise PipelineError(f"{self.folder}: no labels beside its log; run it again with a map that has them")
        indices, first = np.unique(log.indices, return_index=True)
        if len(indices) == 0:
            raise PipelineError(f"{log.path}: no prediction in it")
        if indices[-1] >= len(log.samples.labels):
            raise PipelineError(f"{log.path}: sample {indices[-1]} is logged and its list ends before")
        return int((log.classes[first] == log.samples.labels[indices]).sum()), len(indices)


@dataclass(frozen=True, eq=False)
class Work:
    """The whole folder.

    Attributes:
        scenarios: by name, those of which any run is there.
        broken: runs that are there and cannot be read, with why.
    """

    folder: Path
    plan: Plan
    limits: Limits
    description: Mapping[str, object]
    measurements: Mapping[str, object]
    scenarios: Mapping[str, Mapping[str, Run]]
    broken: Mapping[str, str]

    def runs(self, *kinds: str) -> Iterator[Run]:
        """Those of `kinds`, or all, in a fixed order."""
        for runs in self.scenarios.values():
            yield from (runs[kind] for kind in kinds or KINDS if kind in runs)


def run_folder(folder: Path, scenario: str, kind: str) -> Path:
    return folder / RUNS / scenario / kind


def read_work(folder: Path, limits: Limits | None = None) -> Work:
    """Raises PipelineError where `init` has made no folder, or its files are damaged."""
    plan = read_plan(folder)
    scenarios: dict[str, dict[str, Run]] = {}
    broken = {}
    for scenario in SCENARIOS:
        if not (folder / RUNS / scenario).is_dir():
            continue
        found = scenarios[scenario] = {}
        for kind in KINDS:
            if run_folder(folder, scenario, kind).is_dir():
                try:
                    found[kind] = read_run(folder, scenario, kind)
                except PipelineError as error:
                    broken[f"{scenario}/{kind}"] = str(error)
    return Work(
        folder=folder,
        plan=plan,
        limits=limits or (SMALL if plan.trial else OFFICIAL),
        description=read_json(folder / SYSTEM, "write it again with init"),
        measurements=read_json(folder / MEASUREMENTS, "write it again with init"),
        scenarios=scenarios,
        broken=broken,
    )


def read_run(folder: Path, scenario: str, kind: str) -> Run:
    """Raises PipelineError."""
    place = run_folder(folder, scenario, kind)
    result = read_result(place)
    values = {record["key"]: record["value"] for record in read_detail(find_log(place, "detail.txt"))}
    return Run(place, scenario, kind, result, values, read_json(place / FILE_NAME, "run it again"))
