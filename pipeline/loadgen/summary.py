"""summary.json: what was run, on what, how fast, and what came out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from pipeline.loadgen.binding import plain_fields
from pipeline.loadgen.options import Options
from pipeline.loadgen.results import LoadGenResult
from pipeline.machine.hardware import describe_machine
from pipeline.report.accuracy import Accuracy
from pipeline.report.history import StageMean
from pipeline.report.json_file import write_json
from pipeline.report.versions import installed
from pipeline.report.versions import versions as common_versions
from pipeline.telemetry.metrics import Snapshot

FILE_NAME = "summary.json"


class BadImage(Protocol):
    """A file that was left out, and why."""

    @property
    def path(self) -> Any: ...

    @property
    def why(self) -> str: ...


def summarise(
    options: Options,
    *,
    test_settings: Any,
    log_settings: Any,
    target: str,
    model: Path,
    samples: int,
    batch_size: int,
    snapshot: Snapshot | None,
    stages: Iterable[StageMean],
    bad_images: Iterable[BadImage] = (),
    result: LoadGenResult | None = None,
    accuracy: Accuracy | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary as plain values, ready for JSON.

    `test_settings` and `log_settings` are LoadGen's own, as they were given to the test; `target` says
    what the engine ran on; `snapshot` is the run's last, and `stages` are its `History.stages()`. Parts
    that the run did not reach are null.
    """
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {
            "options": options.as_dict(),
            "test_settings": plain_fields(test_settings),
            "log_settings": plain_fields(log_settings) | plain_fields(log_settings.log_output),
            "target": target,
            "model": str(model),
            "samples": samples,
            "batch_size": batch_size,
        },
        "hardware": describe_machine(),
        "versions": versions(result),
        "throughput": None
        if snapshot is None
        else {"completed": snapshot.completed, "samples_per_second_mean": snapshot.rate_mean},
        "stages": [stage.as_dict() for stage in stages],
        "bad_images": [{"path": str(b.path), "why": b.why} for b in bad_images],
        "loadgen": None if result is None else result.as_dict(),
        "accuracy": None if accuracy is None else accuracy.as_dict(),
        **(extra or {}),
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write summary.json into `folder`, whole or not at all; returns its path. Raises PipelineError."""
    path = folder / FILE_NAME
    write_json(path, summary)
    return path


def versions(result: LoadGenResult | None = None) -> dict[str, str | None]:
    """What the run's results depend on; None for what is not installed.

    LoadGen's is the one it wrote into its log, which is right for a build of the user's own too.
    """
    return common_versions() | {"loadgen": (result.version if result else "") or installed("mlcommons-loadgen")}
