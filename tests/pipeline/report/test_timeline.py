"""A run over time: exact means, however many points were dropped."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report.timeline import MOST_POINTS, Series, Span, Timeline
from pipeline.telemetry.metrics import Snapshot, StageSnapshot

BUSY = Series("busy", "infer")


def snapshot(
    counted: float, counted_s: float, *, busy: float = 0.5, phase: str = "running", expected: int = 9
) -> Snapshot:
    stage = StageSnapshot("infer", 1, int(counted), 1.0, busy, 0, 0)
    return Snapshot(phase, 0.0, int(counted), expected, 1.0, 1.0, (stage,), counted, counted_s)


def load(clock: int | None, power: float | None = 300.0) -> Load:
    gpu = GpuLoad(1, "a GPU", None, None, None, power, 700.0, clock, None)
    return Load(4, 0.25, 0, 0, (gpu,))


def total(spans: tuple[Span, ...]) -> float:
    return sum(span.value * (span.end_s - span.begin_s) for span in spans)


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 1)), min_size=2, max_size=60))
def test_the_sum_over_time_is_that_of_all_snapshots(ticks: list[tuple[float, float]]) -> None:
    line, now = Timeline(), 100.0
    due = 0.0
    for n, (step, busy) in enumerate(ticks):
        now += step if n else 0
        due += step * busy if n else 0
        line.add(now, snapshot(n, now, busy=busy), None)
    spans = line.means(BUSY)
    assert total(spans) == pytest.approx(due)
    assert spans[0].begin_s == 0
    assert spans[-1].end_s == pytest.approx(line.seconds) == pytest.approx(now - 100)
    assert all(a.end_s == b.begin_s for a, b in pairwise(spans))


def test_a_day_is_as_many_points_as_an_hour_and_as_exact() -> None:
    line = Timeline()
    for tick in range(4 * 3600 * 6):
        now = tick / 4
        line.add(now, snapshot(100 * now, now, busy=float(tick % 2)), None)
    rates = line.rate()
    assert MOST_POINTS / 2 - 2 <= len(rates) <= MOST_POINTS
    assert {round(span.value, 6) for span in rates} == {100}
    assert total(rates) == pytest.approx(100 * (rates[-1].end_s - rates[0].begin_s))
    assert rates[0].begin_s < 1
    assert rates[-1].end_s > 3600 * 6 - 60
    assert line.means(BUSY)[0].begin_s == 0
    # Of a stage that works every other quarter of a second, every mean over many is a half.
    assert all(abs(span.value - 0.5) < 0.02 for span in line.means(BUSY)[:-1])


def test_the_rate_is_over_whole_batches() -> None:
    line = Timeline()
    for tick in range(40):
        now = tick / 4
        batch = now // 3  # a batch of 30 every 3 s: nothing is known in between
        line.add(50 + now, snapshot(30 * batch, 50 + 3 * batch), None)
    assert [(span.begin_s, span.end_s, span.value) for span in line.rate()] == [(0, 3, 10), (3, 6, 10), (6, 9, 10)]


def test_before_anything_is_asked_for_there_is_no_rate() -> None:
    line = Timeline()
    for second in range(5):
        line.add(float(second), snapshot(0, second, phase="loading", expected=0), None)
    assert line.rate() == ()
    assert line.phases == [(0.0, "loading")]


def test_a_gpu_that_tells_nothing_has_no_line_there() -> None:
    line = Timeline()
    told = [1500, None, None, 1700]
    for second, clock in enumerate([*told, 1700]):
        line.add(float(second), snapshot(0, second), load(clock, power=None))
    clock = Series("clock", "1")
    assert set(line.series()) == {BUSY, Series("cpu"), clock}
    assert [(s.begin_s, s.end_s, s.value) for s in line.means(clock)] == [(2, 3, 1700), (3, 4, 1700)]


def test_phases_are_bounded() -> None:
    line = Timeline()
    for second in range(1000):
        line.add(float(second), snapshot(0, second, phase=f"phase {second}"), None)
    assert len(line.phases) == 16
