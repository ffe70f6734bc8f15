"""The summary of a classify run, in JSON: what was run, on what, how fast, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from pipeline.stages.load import BY_GPU
from pipeline.telemetry.metrics import Snapshot

FILE_NAME = "_summary.json"
NAMED_REASONS = 5


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


def decoded_line(ways: Mapping[str, int], bytes_per_s: float) -> str:
    """`decoded 198 files on the GPU, 1.25 GB/s; 2 by loaders (progressive 1, CMYK 1)`.

    `bytes_per_s` are those of the files that went to the GPU.
    """
    others = _by_loaders(ways)
    line = f"decoded {ways.get(BY_GPU, 0):,} files on the GPU, {bytes_per_s / 1e9:.3g} GB/s"
    if not others:
        return line
    named = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    more = ", ..." if len(named) > NAMED_REASONS else ""
    said = ", ".join(f"{reason} {count:,}" for reason, count in named[:NAMED_REASONS])
    return f"{line}; {sum(others.values()):,} by loaders ({said}{more})"


def _by_loaders(ways: Mapping[str, int]) -> dict[str, int]:
    """Reasons why loaders decoded files, and how many each."""
    return {reason: count for reason, count in ways.items() if reason != BY_GPU and count}


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
    ways: Mapping[str, int],
    bytes_per_s: float,
    scores: Scores | None,
    verdict: Verdict | None,
    energy: Energy | None,
) -> dict[str, Any]:
    """The summary as plain values, ready for JSON; `snapshot` is the run's last, `bytes_per_s` as of `decoded_line`."""
    decoded = {"gpu": ways.get(BY_GPU, 0), "gpu_bytes_per_s": bytes_per_s, "loaders": _by_loaders(ways)}
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
        "decoded": decoded if ways else None,
        "stages": [stage.as_dict() for stage in stages],
        "engines": list(engines),
        "accuracy": None if scores is None else scores.as_dict(),
        "verdict": None if verdict is None else verdict.as_dict(),
        "energy": None if energy is None else energy.as_dict(),
    }
