"""Draw the dashboard over simulated snapshots and keep it as an SVG, for the documentation.

    python -m tools.render_dashboard [OUT.svg]

Nothing is measured here: the figures are made up, and the picture's title says so.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme

from int4core.streams import run_command
from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report.frame import MAX_WIDTH, Frame
from pipeline.report.history import History
from pipeline.report.view import View
from pipeline.telemetry.metrics import Snapshot, StageSnapshot

TITLE = "int4-resnet50 · Offline · PerformanceOnly · SAMPLE DATA"
SECONDS, STEP_S = 118.0, 0.25
EXPECTED = 4_400_000

_THEME = TerminalTheme(
    background=(16, 20, 28),
    foreground=(208, 214, 224),
    normal=[
        (16, 20, 28), (240, 113, 120), (126, 211, 133), (245, 196, 92),
        (97, 165, 250), (199, 146, 234), (79, 209, 197), (208, 214, 224),
    ],
    bright=[
        (98, 110, 130), (240, 113, 120), (126, 211, 133), (245, 196, 92),
        (97, 165, 250), (199, 146, 234), (79, 209, 197), (236, 240, 245),
    ],
)  # fmt: skip


def pace(second: float) -> float:
    """A made-up rate: a ramp, a plateau with ripples, and one dip."""
    ramp = 1 - math.exp(-second / 4)
    ripple = 1 + 0.02 * math.sin(second * 1.7) + 0.015 * math.sin(second * 0.61)
    dip = 1 - 0.45 * math.exp(-(((second - 71) / 2.2) ** 2))
    return 26_000 * ramp * ripple * dip


def snapshots() -> Iterator[tuple[float, Snapshot]]:
    """(time in seconds, snapshot) of a made-up run."""
    completed, now = 0.0, 0.0
    while now <= SECONDS:
        rate = pace(now)
        answered = int(completed)
        stages = (
            StageSnapshot("decode", 14, 50_000, 0.0, 0.0, 0, 448),
            StageSnapshot("infer", 1, answered + 1024, rate, 0.97, 3072, 3072),
            StageSnapshot("complete", 1, answered, rate, 0.04, 410, 8192),
        )
        mean = completed / now if now else 0.0
        yield now, Snapshot("running", now, answered, EXPECTED, rate, mean, stages, answered, now)
        completed += rate * STEP_S
        now += STEP_S


def sample_view() -> View:
    """The made-up run at its last moment."""
    history = History()
    for now, snapshot in snapshots():
        history.add(now, snapshot)
    gpu = GpuLoad(0, "NVIDIA T4", 0.98, 3_600 << 20, 15_360 << 20, 69.0, 70.0, 1_215, 66)
    return View(
        title=TITLE,
        snapshot=snapshot,
        expected=EXPECTED,
        eta_s=(EXPECTED - snapshot.completed) / (history.recent or 1.0),
        columns=tuple(history.columns),
        peak=history.peak,
        load=Load(16, 0.21, 9 << 30, 64 << 30, (gpu,)),
    )


class WordByWord:
    """A frame whose words are segments of their own, so that the SVG places each by its coordinates.

    Some viewers drop the blanks at the ends of a piece of text, or have no font with our cell's width.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in self._frame.__rich_console__(console, options):
            if not isinstance(segment, Segment) or segment.text == "\n":
                yield segment
                continue
            for piece in re.findall(r" +|[^ ]+(?: [^ ]+)*", segment.text):
                yield Segment(piece, segment.style)


def render(path: Path) -> None:
    console = Console(file=io.StringIO(), record=True, width=MAX_WIDTH, force_terminal=True, color_system="truecolor")
    console.print(WordByWord(Frame(sample_view())))
    svg = console.export_svg(title="python -m pipeline.offline", theme=_THEME, unique_id="dashboard")
    path.parent.mkdir(parents=True, exist_ok=True)
    # rich pads lines with blanks: the file is the same without them.
    path.write_text("".join(f"{line.rstrip()}\n" for line in svg.splitlines()), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    about = "Draw the dashboard over simulated snapshots and keep it as an SVG."
    parser = argparse.ArgumentParser("python -m tools.render_dashboard", description=about)
    default = Path(__file__).resolve().parents[1] / "docs" / "dashboard.svg"
    parser.add_argument("out", type=Path, nargs="?", default=default, metavar="OUT.svg")
    path = parser.parse_args(argv).out
    render(path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
