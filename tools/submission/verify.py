"""What an audit hands in besides its logs, in the words of MLPerf's verification, where theirs is not at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tools.submission.audits import figure, is_latency, tolerance
from tools.submission.work import Run

LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt")
ACCURACY_LOG = "mlperf_log_accuracy.json"


def verify(audit: Run, performance: Run, accuracy: Run, out: Path) -> None:
    """Write the logs and verdicts of `audit` into `out`. Raises PipelineError for logs that cannot be read."""
    runs, answers = out / "performance" / "run_1", out / "accuracy"
    runs.mkdir(parents=True)
    for name in LOGS:
        shutil.copy2(audit.folder / name, runs)
    (out / "verify_performance.txt").write_text(_rates(audit, performance))
    if audit.kind == "TEST01":
        answers.mkdir()
        shutil.copy2(audit.folder / ACCURACY_LOG, answers)
        (out / "verify_accuracy.txt").write_text(_answers(audit, accuracy))


def _rates(audit: Run, performance: Run) -> str:
    reference, found = (figure(audit.scenario, run.values) for run in (performance, audit))
    share = tolerance(audit.scenario, reference)
    ratio = found / reference
    if audit.kind == "TEST01":
        good = 1 - share <= ratio <= 1 + share
    else:
        good = (1 / ratio if is_latency(audit.scenario) else ratio) < 1 + share
    return f"Reference score = {reference}\nTest score = {found}\nTEST {'PASS' if good else 'FAIL'}\n"


def _answers(audit: Run, accuracy: Run) -> str:
    count = 1 + max(int(audit.log.indices.max(initial=-1)), int(accuracy.log.indices.max(initial=-1)))
    expected, _ = accuracy.log.predictions(count)
    differing = int(np.count_nonzero(expected[audit.log.indices] != audit.log.classes))
    good = len(audit.log.indices) > 0 and differing == 0
    return (
        f"num_acc_log_entries = {len(accuracy.log.indices)}\nnum_perf_log_entries = {len(audit.log.indices)}\n"
        f"num_perf_log_data_mismatch = {differing}\nTEST {'PASS' if good else 'FAIL'}\n"
    )
