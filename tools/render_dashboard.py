"""Draw the dashboard of a run that was recorded, as an SVG, for the documentation.

python -m pipeline.offline --json > RUN.jsonl
python -m tools.render_dashboard RUN.jsonl [OUT.svg] [--at SECONDS]
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme

from int4core.errors import printed
from pipeline.errors import PipelineError
from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report.frame import MAX_WIDTH, Frame
from pipeline.report.history import History
from pipeline.report.view import View
from pipeline.telemetry.metrics import Decoded, Snapshot, StageSnapshot

ROWS = 50
"""More than any frame has."""

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


def view_at(recording: Path, at_s: float | None = None) -> View:
    """What the dashboard showed `at_s` seconds into the running phase; default: at its last moment.

    Raises PipelineError for a file that `--json` has not written, and where the run was not running then.
    """
    history, shown = History(), None
    for number, line in enumerate(_lines(recording), 1):
        try:
            record = json.loads(line)
            snapshot, title, load = _snapshot(record), str(record["title"]), _load(record["load"])
            begun_s = float(record["time"])
        except (ValueError, TypeError, KeyError) as error:
            raise PipelineError(f"{recording}:{number}: not a line of a run with --json: {error}") from error
        if snapshot.phase == "running" and at_s is not None and snapshot.elapsed_s > at_s:
            break
        history.add(begun_s, snapshot)
        if snapshot.phase == "running":
            pace = history.recent or snapshot.rate_mean
            eta_s = (snapshot.expected - snapshot.completed) / pace if pace else None
            shown = View(title, snapshot, snapshot.expected, eta_s, tuple(history.columns), history.peak, load)
    if shown is None:
        raise PipelineError(f"{recording}: the run is not running in any line; record one with --json")
    return shown


def _lines(recording: Path) -> list[str]:
    try:
        return recording.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{recording}: cannot be read: {error}") from error


def _snapshot(record: dict[str, Any]) -> Snapshot:
    stages = (stage | {"worker_rates": tuple(stage["worker_rates"])} for stage in record["stages"])
    # What a recording does not have was not there when it was made: the default is what it was.
    names = {field.name for field in fields(Snapshot)} & record.keys() - {"decoded"}
    known = {name: record[name] for name in names}
    decoded = Decoded(**record["decoded"]) if "decoded" in record else None
    return Snapshot(**known | {"stages": tuple(StageSnapshot(**stage) for stage in stages), "decoded": decoded})


def _load(record: dict[str, Any] | None) -> Load | None:
    return None if record is None else Load(**record | {"gpus": tuple(GpuLoad(**gpu) for gpu in record["gpus"])})


class WordByWord:
    """A frame whose words are segments of their own, so that the SVG places each by its coordinates.

    Some viewers drop the blanks at the ends of a piece of text, or have no font with our cell's width.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in self._frame.__rich_console__(console, options):
            if not isinstance(segment, Segment) or segment.control or segment.text == "\n":
                yield segment
                continue
            for piece in re.findall(r" +|[^ ]+(?: [^ ]+)*", segment.text):
                yield Segment(piece, segment.style)


def render(view: View, path: Path) -> None:
    console = Console(
        file=io.StringIO(), record=True, width=MAX_WIDTH, height=ROWS, force_terminal=True, color_system="truecolor"
    )
    console.print(WordByWord(Frame(view)))
    svg = console.export_svg(title="python -m pipeline.offline", theme=_THEME, unique_id="dashboard")
    path.parent.mkdir(parents=True, exist_ok=True)
    # rich pads lines with blanks: the file is the same without them.
    path.write_text("".join(f"{line.rstrip()}\n" for line in svg.splitlines()), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    about = "Draw the dashboard of a run that was recorded with --json, as an SVG."
    parser = argparse.ArgumentParser("python -m tools.render_dashboard", description=about)
    docs = Path(__file__).resolve().parents[1] / "docs"
    parser.add_argument("recording", type=Path, metavar="RUN.jsonl")
    parser.add_argument("out", type=Path, nargs="?", default=docs / "dashboard.svg", metavar="OUT.svg")
    parser.add_argument("--at", type=float, metavar="SECONDS", help="seconds into the running phase (default: its end)")
    options = parser.parse_args(argv)
    try:
        render(view_at(options.recording, options.at), options.out)
    except PipelineError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
