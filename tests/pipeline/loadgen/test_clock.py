"""A system clock that is set during a test shows: LoadGen's figures are then not those of the monotonic clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.loadgen.clock import clock_warning
from pipeline.loadgen.results import LoadGenResult
from pipeline.telemetry.answering import Answering

RESULT = LoadGenResult("Offline", "PerformanceOnly", True, 2021.0, (), (), (), {}, {}, "6.0")
# 20,210 samples in 10 s; LoadGen made its lists for 0.4 s before.
ANSWERING = Answering(20_210, 100.4, 110.4, 0.0)


def test_a_clock_that_was_set_back_is_named_with_both_figures() -> None:
    said = clock_warning(replace(RESULT, samples_per_second=3194.5), replace(ANSWERING, clock_step_s=-3.674), 100.0)
    assert said == (
        "WARNING: LoadGen says 3,194.5 samples/s, the monotonic clock 2,021.0: LoadGen's times are those of the "
        "system's clock, which was set back by 3.67 s while it ran; do not trust the result or its latencies, run again"
    )


def test_a_clock_that_was_set_forward() -> None:
    said = clock_warning(replace(RESULT, samples_per_second=1010.5), replace(ANSWERING, clock_step_s=10.0), 100.0)
    assert said is not None
    assert "1,010.5 samples/s, the monotonic clock 2,021.0" in said
    assert "set forward by 10 s" in said


@pytest.mark.parametrize("rate", [2021.0, 2021 * 1.029, 20_209 / 10.4, 20_209 / 10.4 * 0.971])
def test_figures_within_3_percent_of_the_time_that_loadgen_may_have_counted_pass(rate: float) -> None:
    assert clock_warning(replace(RESULT, samples_per_second=rate), ANSWERING, 100.0) is None


@pytest.mark.parametrize("rate", [2021 * 1.031, 20_209 / 10.4 * 0.969])
def test_figures_beyond_do_not(rate: float) -> None:
    assert clock_warning(replace(RESULT, samples_per_second=rate), ANSWERING, 100.0) is not None


def test_latencies_alone_are_judged_by_the_step() -> None:
    result = replace(RESULT, scenario="MultiStream", samples_per_second=None)
    assert clock_warning(result, ANSWERING, 100.0) is None
    assert clock_warning(result, replace(ANSWERING, clock_step_s=0.29), 100.0) is None
    said = clock_warning(result, replace(ANSWERING, clock_step_s=-0.31), 100.0)
    assert said is not None
    assert "set back by 0.31 s" in said


def test_other_modes_time_more_than_one_thing() -> None:
    result = replace(RESULT, mode="SubmissionRun", samples_per_second=9999.0)
    assert clock_warning(result, ANSWERING, 100.0) is None
