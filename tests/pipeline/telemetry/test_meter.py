from __future__ import annotations

import pytest

from pipeline.telemetry.meter import PIECES, RESOLUTION_S, Meter


def test_work_is_spread_over_the_time_it_took() -> None:
    meter = Meter(0.0)
    meter.add(3.0, 2.0, 16)  # from 1 to 3
    meter.add(7.0, 4.0, 8)
    assert (meter.samples, meter.busy_s, meter.until_s) == (24, 6.0, 7.0)
    done = [meter.by(t) for t in (0.5, 1.0, 2.0, 3.0, 4.0, 7.0, 9.0)]
    assert done == [(0, 0), (0, 0), (8, 1), (16, 2), (18, 3), (24, 6), (24, 6)]


def test_work_that_took_no_time_is_a_step() -> None:
    meter = Meter(0.0)
    meter.add(1.0, 0.0, 5)
    assert [meter.by(t)[0] for t in (0.999, 1.0)] == [0, 5]


def test_short_pieces_are_kept_as_one() -> None:
    meter = Meter(0.0)
    for step in range(1, 100_001):
        meter.add(step * 1e-4, 5e-5, 1)
    assert len(meter._pieces) <= 10.0 / (RESOLUTION_S - 2e-4)
    assert meter.by(10.0) == (100_000, pytest.approx(5.0))
    for time_s in (1.23456, 5.0, 9.99):
        assert meter.by(time_s)[0] == pytest.approx(time_s * 1e4, abs=2)


def test_it_does_not_grow_without_end() -> None:
    meter = Meter(0.0)
    for second in range(1, 2 * PIECES):
        meter.add(float(second), 1.0, 4)
    assert len(meter._pieces) == PIECES
    assert meter.by(2 * PIECES - 2.0)[0] == 4 * (2 * PIECES - 2)
