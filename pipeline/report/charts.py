"""Charts as what a page needs to draw them: paths in a box of WIDTH x HEIGHT, and labels by per cent of its sides.

The page stretches the box to its width; labels are the page's own text, so that they are as large on a phone as on a
screen. Written here, as all of it is a line, an area or bars: libraries bring megabytes of script for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.report.drawing import clock
from pipeline.report.timeline import Span

WIDTH, HEIGHT = 1000, 100
MOST_STEPS = 4
MOST_TIMES = 5
# Below it, a value is none.
TINY = 1e-9
NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
# What a phase's name may take of the width of a phone's screen, in per cent.
LABEL_WIDTH = 16.0


@dataclass(frozen=True)
class Tick:
    """A label at a place, in per cent: of the width from the left, or of the height from below."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One series of a chart: `path` is its line, `area` what lies below it (or empty), `mean` its mean as text."""

    name: str
    path: str
    mean: str
    area: str = ""


@dataclass(frozen=True)
class Chart:
    """Series over one pair of axes.

    Attributes:
        marks: moments at which something began, with its name where there is room for it.
    """

    title: str
    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    marks: tuple[Tick, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One series: its name and its means over time."""

    name: str
    spans: Sequence[Span]


def over_time(
    title: str,
    curves: Iterable[Curve],
    seconds: float,
    *,
    unit: str = "",
    top: float = 0.0,
    percent: bool = False,
    filled: bool = False,
    phases: Sequence[tuple[float, str]] = (),
) -> Chart | None:
    """The chart of `curves` over `seconds`; None where there is nothing to draw.

    The axis goes from 0 to `top`, or to a round number above the largest value where that is more.
    """
    drawn = [curve for curve in curves if curve.spans]
    if not drawn or seconds <= 0:
        return None
    largest = max(top, *(span.value for curve in drawn for span in curve.spans))
    steps = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else nice_steps(largest)
    height = steps[-1]
    lines = []
    for curve in drawn:
        path = line_path(curve.spans, seconds, height)
        mean = _mean(curve.spans)
        said = f"{100 * mean:.0f} %" if percent else f"{number(mean)} {unit}".rstrip()
        lines.append(Line(curve.name, path, said, area_path(curve.spans, seconds, height) if filled else ""))
    labels = [f"{100 * step:.0f} %" if percent else number(step) for step in steps]
    y = tuple(Tick(100 * step / height, text) for step, text in zip(steps, labels, strict=True))
    return Chart(title, tuple(lines), time_ticks(seconds), y, marks(phases, seconds))


def line_path(spans: Sequence[Span], seconds: float, height: float) -> str:
    """Through the middle of each span, from the first's beginning to the last's end; broken where spans do not meet."""
    return " ".join(_polyline(run, seconds, height) for run in _runs(spans))


def area_path(spans: Sequence[Span], seconds: float, height: float) -> str:
    """What lies below `line_path`."""
    return " ".join(
        f"{_polyline(run, seconds, height)} V{HEIGHT} H{_x(run[0].begin_s, seconds)} Z" for run in _runs(spans)
    )


def bars_path(values: Sequence[float], gap: float = 0.15) -> str:
    """Upright bars side by side, the largest as high as the box; `gap` is the share of a bar that stays free."""
    largest = max(values, default=0)
    if not largest:
        return ""
    step = WIDTH / len(values)
    wide = step * (1 - gap)
    bars = []
    for place, value in enumerate(values):
        if value > 0:
            # Whatever is there is seen.
            high = max(HEIGHT * value / largest, 0.7)
            bars.append(f"M{_short(place * step)} {HEIGHT}v{_short(-high)}h{_short(wide)}V{HEIGHT}z")
    return "".join(bars)


def nice_steps(largest: float) -> list[float]:
    """0 and round numbers up to the first that is not below `largest`."""
    if not TINY < largest < math.inf:
        return [0.0, 1.0]
    rough = largest / MOST_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in NICE if power * nice >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def time_ticks(seconds: float) -> tuple[Tick, ...]:
    """Moments of a run of that length."""
    fits = [step for step in NICE_SECONDS if seconds / step <= MOST_TIMES]
    step = fits[0] if fits else 86400 * math.ceil(seconds / 86400 / MOST_TIMES)
    moments = [step * i for i in range(int(seconds / step + 1e-9) + 1)]
    return tuple(Tick(100 * t / seconds, f"{t} s" if seconds < 120 else clock(t)) for t in moments)


def marks(phases: Sequence[tuple[float, str]], seconds: float) -> tuple[Tick, ...]:
    """The phases' beginnings; a phase that is too short for its name has none."""
    ends = [*(at_s for at_s, _ in phases[1:]), seconds]
    return tuple(
        Tick(100 * at_s / seconds, name if 100 * (end_s - at_s) / seconds >= LABEL_WIDTH else "")
        for (at_s, name), end_s in zip(phases, ends, strict=False)
    )


def number(value: float) -> str:
    """Three digits or more, none of which is noise: `12,345`, `341`, `15.9`, `0.25`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _mean(spans: Sequence[Span]) -> float:
    seconds = sum(span.end_s - span.begin_s for span in spans)
    return sum(span.value * (span.end_s - span.begin_s) for span in spans) / seconds


def _runs(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans that meet each other."""
    runs: list[list[Span]] = []
    for span in spans:
        if runs and span.begin_s <= runs[-1][-1].end_s:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


def _polyline(run: Sequence[Span], seconds: float, height: float) -> str:
    first, last = run[0], run[-1]
    points = [(first.begin_s, first.value)]
    points += [((span.begin_s + span.end_s) / 2, span.value) for span in run]
    points.append((last.end_s, last.value))
    return "M" + " L".join(f"{_x(at, seconds)} {_short(HEIGHT * (1 - value / height))}" for at, value in points)


def _x(at_s: float, seconds: float) -> str:
    return _short(min(WIDTH, WIDTH * at_s / seconds))


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
