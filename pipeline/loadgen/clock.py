"""LoadGen times a test with the system's clock, which may be set while it runs; the pipeline has the monotonic one."""

from __future__ import annotations

from pipeline.loadgen.results import LoadGenResult
from pipeline.telemetry.answering import Answering

TOLERANCE = 0.03
"""The share by which LoadGen's figures and the monotonic clock's may differ without a word."""


def clock_warning(result: LoadGenResult, answering: Answering, could_begin_s: float) -> str | None:
    """A sentence where LoadGen's figures and the monotonic clock's differ by more than 3 %; else None.

    `could_begin_s` (monotonic) is when LoadGen's samples were loaded. Its clock starts between that and the first query
    that reached the pipeline: it makes lists of a query before it calls anyone, for seconds where the query is long.
    """
    lasted_s, step_s = answering.last_s - answering.first_s, answering.clock_step_s
    if result.mode != "PerformanceOnly" or lasted_s <= 0:
        return None
    stepped = abs(step_s) > TOLERANCE * lasted_s
    rate = result.samples_per_second
    said = "LoadGen's times are those"
    if rate is not None:
        # In the Server scenario LoadGen counts from the first sample on, one sample fewer.
        lowest = (answering.samples - 1) / max(answering.last_s - could_begin_s, lasted_s)
        highest = answering.rate
        nearest = min(max(rate, lowest), highest)
        stepped = stepped or abs(rate - nearest) > TOLERANCE * nearest
        said = f"LoadGen says {rate:,.1f} samples/s, the monotonic clock {highest:,.1f}: LoadGen's times are those"
    if not stepped:
        return None
    way = "forward" if step_s > 0 else "back"
    return (
        f"WARNING: {said} of the system's clock, which was set {way} by {abs(step_s):.3g} s while it ran; do not trust "
        "the result or its latencies, run again"
    )
