"""Charts: paths that stay in their box, axes with round numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.charts import (
    HEIGHT,
    WIDTH,
    Curve,
    area_path,
    bars_path,
    line_path,
    marks,
    nice_steps,
    number,
    over_time,
    time_ticks,
)
from pipeline.report.timeline import Span

SPANS = (Span(0, 2, 10), Span(2, 4, 20), Span(6, 10, 0))


def test_a_line_goes_through_the_middles_and_is_broken_where_nothing_is_known() -> None:
    line = line_path(SPANS, 10, 20)
    assert line == "M0 50 L100 50 L300 0 L400 0 M600 100 L800 100 L1000 100"
    assert area_path(SPANS[2:], 10, 20) == "M600 100 L800 100 L1000 100 V100 H600 Z"


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=50), st.floats(0.5, 1e7))
def test_what_is_drawn_stays_in_its_box(values: list[float], seconds: float) -> None:
    step = seconds / len(values)
    spans = [Span(i * step, (i + 1) * step, value) for i, value in enumerate(values)]
    chart = over_time("a", [Curve("b", spans), Curve("nothing", [])], seconds)
    assert chart is not None
    assert [line.name for line in chart.lines] == ["b"]
    for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", chart.lines[0].path):
        assert -0.01 <= float(x) <= WIDTH + 0.01
        assert -0.01 <= float(y) <= HEIGHT + 0.01
    assert all(0 <= tick.at <= 100.01 for tick in chart.x + chart.y)


def test_nothing_to_draw_is_no_chart() -> None:
    assert over_time("a", [Curve("b", [])], 10) is None
    assert over_time("a", [Curve("b", SPANS)], 0) is None


def test_bars() -> None:
    assert bars_path([0, 2, 1, 0], gap=0.0) == "M250 100v-100h250V100zM500 100v-50h250V100z"
    assert bars_path([0, 0]) == bars_path([]) == ""
    assert "v-0.7h" in bars_path([1, 10**6])


@pytest.mark.parametrize(
    ("largest", "steps"),
    [(0, [0, 1]), (4, [0, 1, 2, 3, 4]), (341, [0, 100, 200, 300, 400]), (0.9, [0, 0.25, 0.5, 0.75, 1])],
)
def test_axes_end_in_round_numbers(largest: float, steps: list[float]) -> None:
    assert nice_steps(largest) == pytest.approx(steps)


@given(st.floats(1e-6, 1e15))
def test_an_axis_reaches_its_largest_value_in_few_steps(largest: float) -> None:
    steps = nice_steps(largest)
    assert steps[-1] >= largest * (1 - 1e-6)
    assert 3 <= len(steps) <= 6
    assert len({number(step) for step in steps}) == len(steps)


@given(st.floats(0.5, 1e8))
def test_times_are_few_and_differ(seconds: float) -> None:
    ticks = time_ticks(seconds)
    assert 1 <= len(ticks) <= 6
    assert len({tick.text for tick in ticks}) == len(ticks)
    assert all(0 <= tick.at <= 100.001 for tick in ticks)


def test_a_phase_has_its_name_where_there_is_room() -> None:
    named = marks([(0, "starting"), (1, "running"), (99, "done")], 100)
    assert [(mark.at, mark.text) for mark in named] == [(0, ""), (1, "running"), (99, "")]
    assert marks([], 10) == ()
