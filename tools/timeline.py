"""A picture of a profile: a lane a stream, and above them the NVTX ranges of each thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from int4core.install import install_command
from pipeline.errors import PipelineError
from tools.nsys_read import Profile, Range

_COPY_COLOURS = {"H2D": "#e66101", "D2H": "#d01c8b", "D2D": "#999999", "P2P": "#666666"}
_PID_SHIFT = 24
_PID_MASK = 0xFFFFFF


def load_pyplot() -> Any:
    """matplotlib.pyplot without a display. Raises PipelineError naming the extra."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise PipelineError(
            f"the picture needs matplotlib ({error}): {install_command('report')}; or leave it out with --no-picture"
        ) from error
    return pyplot


def middle(profile: Profile, window_ms: float) -> tuple[float, float]:
    """(begin, end) in ns of the `window_ms` in the middle of the profile, or of all of it if it is shorter."""
    begin, end = profile.span
    spare = max(0.0, end - begin - window_ms * 1e6)
    return begin + spare / 2, end - spare / 2


def draw(profile: Profile, file: Path, window_ms: float = 40.0) -> None:
    """Write a PNG of the middle `window_ms`. Raises PipelineError without matplotlib or where it cannot be written."""
    pyplot = load_pyplot()
    begin, end = middle(profile, window_ms)
    shown = [a for a in profile.activities if a.end > begin and a.begin < end]
    ranges = [r for r in profile.ranges if r.end > begin and r.begin < end]
    streams = sorted({(a.pid, a.device, a.stream) for a in shown})
    rows = _depths(ranges)
    lanes = [*sorted({(r.thread, depth) for r, depth in rows}), *streams]
    figure, axes = pyplot.subplots(figsize=(16, 1.5 + 0.5 * len(lanes)), layout="constrained")
    functions = sorted({a.name for a in shown if a.kind == "kernel"})
    shades = pyplot.get_cmap("viridis", max(2, len(functions)))
    colours = {name: shades(i) for i, name in enumerate(functions)} | _COPY_COLOURS
    for range_, depth in rows:
        place = ((range_.begin - begin) / 1e6, (range_.end - range_.begin) / 1e6)
        at = lanes.index((range_.thread, depth))
        axes.broken_barh([place], (at - 0.4, 0.8), facecolors="#d9e6f2", edgecolors="#7f9fbf")
        axes.text(max(0.0, place[0]), at, range_.name, fontsize=6, va="center", clip_on=True)
    labelled: set[str] = set()
    for number, stream in enumerate(streams, start=len(lanes) - len(streams)):
        for name in sorted({a.name for a in shown if (a.pid, a.device, a.stream) == stream}):
            bars = [
                ((a.begin - begin) / 1e6, a.ns / 1e6)
                for a in shown
                if (a.pid, a.device, a.stream) == stream and a.name == name
            ]
            label = name if name not in labelled else None
            labelled.add(name)
            colour = colours.get(name, "#000000")
            axes.broken_barh(bars, (number - 0.4, 0.8), facecolors=colour, label=label)
    axes.set_yticks(range(len(lanes)), [_title(lane) for lane in lanes])
    axes.invert_yaxis()
    axes.set_xlim(0, (end - begin) / 1e6)
    axes.set_xlabel("ms")
    if labelled:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=6, fontsize=7)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise PipelineError(f"{file}: the picture cannot be written: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _depths(ranges: list[Range]) -> list[tuple[Range, int]]:
    """Each range with how many ranges of its thread are around it."""
    around: dict[int, list[Range]] = {}
    placed = []
    for each in sorted(ranges, key=lambda r: (r.begin, -r.end)):
        stack = around.setdefault(each.thread, [])
        while stack and stack[-1].end <= each.begin:
            stack.pop()
        placed.append((each, len(stack)))
        stack.append(each)
    return placed


def _title(lane: tuple[int, ...]) -> str:
    if len(lane) == 2:
        return f"thread {lane[0] & _PID_MASK}" if lane[1] == 0 else ""
    pid, device, stream = lane
    return f"pid {pid >> _PID_SHIFT & _PID_MASK}, GPU {device}, stream {stream}"
