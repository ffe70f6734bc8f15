"""The summary of a classify run, in JSON: what was run, on what, how fast, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.classify.evaluation import Scores
from pipeline.classify.options import Options
from pipeline.commands.setup import Setup
from pipeline.machine.hardware import describe_machine
from pipeline.report.energy import Energy
from pipeline.report.history import StageMean
from pipeline.report.verdict import Verdict
from pipeline.report.versions import versions
from pipeline.samples.left_out import LeftOut
from pipeline.sinks.opening import NOWHERE, STDOUT
from pipeline.telemetry.metrics import Snapshot

FILE_NAME = "_summary.json"


def summary_path(options: Options) -> Path | None:
    """Where the summary goes; None for a run without a table and without --summary.

    Beside a table; in a folder of parts it begins with `_`, so that readers of the folder pass it over.
    """
    if options.summary is not None:
        return options.summary
    if options.out in (STDOUT, NOWHERE):
        return None
    out = Path(options.out)
    if options.out.endswith("/") or out.is_dir():
        return out / FILE_NAME
    return out.with_name(f"{out.name}.summary.json")


def summarise(
    options: Options,
    *,
    setup: Setup,
    snapshot: Snapshot,
    stages: Iterable[StageMean],
    engines: Sequence[Mapping[str, Any]],
    rows: int,
    errors: int,
    skipped: int,
    left_out: LeftOut,
    scores: Scores | None,
    verdict: Verdict | None,
    energy: Energy | None,
) -> dict[str, Any]:
    """The summary as plain values, ready for JSON; `snapshot` is the run's last."""
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {
            "options": options.as_dict(),
            "target": setup.target.notice,
            "model": str(setup.model),
        },
        "hardware": describe_machine(),
        "versions": versions(),
        "throughput": {"completed": snapshot.completed, "samples_per_second_mean": snapshot.rate_mean},
        "rows": rows,
        "errors": errors,
        "skipped": skipped,
        "left_out": {"files": dict(left_out.files), "folders": left_out.folders},
        "decoded": asdict(snapshot.decoded) if snapshot.decoded else None,
        "stages": [stage.as_dict() for stage in stages],
        "engines": list(engines),
        "accuracy": None if scores is None else scores.as_dict(),
        "verdict": None if verdict is None else verdict.as_dict(),
        "energy": None if energy is None else energy.as_dict(),
    }
