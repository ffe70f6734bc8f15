"""A moment of a run on a live dashboard, for a look at it in a terminal of any size.

    python -m tests.pipeline.report.scene PHASE      # starting, loading or running; ends with its terminal

The figures are fixed; lines are printed while it draws, as a run prints them.
"""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report import dashboard as dashboard_module
from pipeline.report.dashboard import Dashboard
from pipeline.report.history import History
from pipeline.report.view import View
from pipeline.telemetry.metrics import Decoded, Snapshot, StageSnapshot

TITLE = "model on GPU 0: NVIDIA H200"
GPU = GpuLoad(0, "NVIDIA H200", 0.98, 12 << 30, 140 << 30, 642.4, 700.0, 1755, 61)
LOAD = Load(16, 0.412, 9 << 30, 64 << 30, (GPU,))
DECODED = Decoded(1_806_190, 13.4e9, {"progressive": 28_412, "not a JPEG file": 9_104, "too large": 3})
LINES = (
    "running on GPU 0: NVIDIA H200",
    "stage infer is up: a note that is longer than a small terminal is wide and goes on in the next row, pids 4711",
)


def snapshot(phase: str) -> Snapshot:
    up = 0 if phase == "starting" else 1
    decode = StageSnapshot("decode", 14, 0, 0.0, 0.0, 0, 448, up=14)
    infer = StageSnapshot("infer", 1, 0, 0.0, 0.0, 0, 4096, up=up)
    complete = StageSnapshot("complete", 1, 0, 0.0, 0.0, 0, 8192, up=1)
    if phase == "starting":
        return Snapshot(phase, 3.0, 0, 0, 0.0, 0.0, (decode, infer, complete), 0.0, 0.0)
    if phase == "loading":
        decode = StageSnapshot("decode", 14, 13_120, 4_310.4, 0.993, 448, 448, up=14)
        stages = (decode, infer, complete)
        return Snapshot(phase, 3.0, 0, 0, 0.0, 0.0, stages, 0.0, 0.0, loaded=13_120, to_load=50_000)
    decode = StageSnapshot("decode", 14, 50_000, 0.0, 0.0, 0, 448, up=14)
    infer = StageSnapshot("infer", 1, 1_843_200, 121_344.0, 0.991, 4096, 4096, up=1)
    complete = StageSnapshot("complete", 1, 1_842_176, 121_344.0, 0.064, 1024, 8192, up=1)
    latency = {"p50": 733.2, "p90": 7_330.0, "p99": 15_120.0}
    stages = (decode, infer, complete)
    return Snapshot(
        phase, 15.0, 1_842_176, 4_400_000, 121_344.0, 122_811.7, stages, 0.0, 0.0, latency_ms=latency, decoded=DECODED
    )


def history() -> History:
    made = History()
    made.columns.extend(122_000 * (1 - math.exp(-second)) + 900 * math.sin(second) for second in range(1, 16))
    made.peak = max(made.columns)
    return made


def view(phase: str) -> View:
    """What the dashboard makes of it."""
    now, past = snapshot(phase), history() if phase == "running" else History()
    eta_s = (now.expected - now.completed) / past.recent if past.recent else None
    return View(TITLE, now, now.expected, eta_s, tuple(past.columns), past.peak, LOAD)


class FixedMonitor:
    def __init__(self, _gpus: object) -> None: ...

    def read(self) -> Load:
        return LOAD

    def close(self) -> None: ...


def main(phase: str) -> None:
    dashboard_module.Monitor = FixedMonitor  # type: ignore[assignment, misc]
    shown = Dashboard(lambda: snapshot(phase), TITLE, mode="live")
    if phase == "running":
        shown.history = history()
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    with shown:
        for line in LINES:
            time.sleep(0.4)
            shown.say(line, console)
        time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
