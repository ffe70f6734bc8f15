"""A run over time: its rate, how busy the stages were, and what the machine did.

What is kept are sums since the run began, at moments. The mean between any two moments is exact, so that every second
one can be dropped when there are too many: memory does not grow with the length of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from pipeline.machine.hardware import Load
from pipeline.telemetry.metrics import Snapshot

MOST_POINTS = 600
STEP_S = 0.5
MOST_PHASES = 16


@dataclass(frozen=True, order=True)
class Series:
    """What is drawn as one line.

    Attributes:
        kind: `busy` (a stage's workers, 0..1), `cpu` (all cores, 0..1), `clock` (MHz) or `power` (W) of a GPU.
        name: the stage or the GPU's number.
    """

    kind: str
    name: str = ""


@dataclass(frozen=True)
class Span:
    """A mean over the seconds from `begin_s` to `end_s`, counted from the run's beginning."""

    begin_s: float
    end_s: float
    value: float


Totals: TypeAlias = dict[Series, tuple[float, float]]
"""The sum over value times seconds, and over those seconds."""


@dataclass(frozen=True)
class _Point:
    """`counted` samples by `counted_s`, None before the first was asked for."""

    at_s: float
    counted_s: float | None
    counted: float
    totals: Totals


class Timeline:
    """Fed with every snapshot of a run, by one thread."""

    def __init__(self) -> None:
        self.phases: list[tuple[float, str]] = []
        """When each phase began, in seconds since the first snapshot, and its name."""
        self.gpu_names: dict[str, str] = {}
        """By a series' name."""
        self._points: list[_Point] = []
        self._step_s = STEP_S
        self._began_s: float | None = None
        self._now_s = 0.0
        self._totals: Totals = {}
        self._latest: _Point | None = None

    def add(self, now_s: float, snapshot: Snapshot, load: Load | None) -> None:
        """Take the snapshot of monotonic time `now_s`, and the machine's load at it, if known."""
        if self._began_s is None:
            self._began_s = self._now_s = now_s
        at_s, span_s = now_s - self._began_s, max(0.0, now_s - self._now_s)
        self._now_s = now_s
        if (not self.phases or self.phases[-1][1] != snapshot.phase) and len(self.phases) < MOST_PHASES:
            self.phases.append((at_s, snapshot.phase))
        for stage in snapshot.stages:
            self._sum(Series("busy", stage.name), stage.busy, span_s)
        if load is not None:
            self._add_load(load, span_s)
        counted_s = max(0.0, snapshot.counted_s - self._began_s) if snapshot.expected else None
        self._latest = _Point(at_s, counted_s, snapshot.counted, self._totals)
        if not self._points or at_s - self._points[-1].at_s >= self._step_s:
            self._keep(self._latest)

    @property
    def seconds(self) -> float:
        """From the first snapshot to the last."""
        return 0.0 if self._latest is None else self._latest.at_s

    def rate(self) -> tuple[Span, ...]:
        """Samples/s of the engines, over whole batches."""
        spans: list[Span] = []
        known = [(p.counted_s, p.counted) for p in self._all() if p.counted_s is not None]
        begin_s, begun = known[0] if known else (0.0, 0.0)
        for end_s, counted in known:
            if end_s - begin_s >= self._step_s / 2:
                spans.append(Span(begin_s, end_s, max(0.0, counted - begun) / (end_s - begin_s)))
                begin_s, begun = end_s, counted
        return tuple(spans)

    def series(self) -> tuple[Series, ...]:
        """All there are, in the order in which they came up."""
        return tuple(self._totals)

    def means(self, series: Series) -> tuple[Span, ...]:
        """A series over time; there is no span where nothing was known."""
        spans, points = [], self._all()
        for before, after in pairwise(points):
            value, seconds = _difference(after, before, series)
            if seconds > 0:
                spans.append(Span(before.at_s, after.at_s, value / seconds))
        return tuple(spans)

    def _add_load(self, load: Load, span_s: float) -> None:
        self._sum(Series("cpu"), load.cpu, span_s)
        for gpu in load.gpus:
            name = str(gpu.index)
            self.gpu_names[name] = gpu.name
            if gpu.clock_mhz is not None:
                self._sum(Series("clock", name), gpu.clock_mhz, span_s)
            if gpu.power_w is not None:
                self._sum(Series("power", name), gpu.power_w, span_s)

    def _sum(self, series: Series, value: float, seconds: float) -> None:
        total, known_s = self._totals.get(series, (0.0, 0.0))
        self._totals[series] = total + value * seconds, known_s + seconds

    def _keep(self, point: _Point) -> None:
        self._points.append(_Point(point.at_s, point.counted_s, point.counted, dict(point.totals)))
        if len(self._points) > MOST_POINTS:
            del self._points[1::2]
            self._step_s *= 2

    def _all(self) -> list[_Point]:
        last = self._latest
        if last is None or last.at_s <= self._points[-1].at_s:
            return self._points
        return [*self._points, last]


def _difference(after: _Point, before: _Point, series: Series) -> tuple[float, float]:
    total, known_s = after.totals.get(series, (0.0, 0.0))
    earlier, earlier_s = before.totals.get(series, (0.0, 0.0))
    return total - earlier, known_s - earlier_s
