"""What LoadGen's settings may be. It checks none of them, and runs for ever, fills the memory or crashes instead."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import psutil

from int4core.backends.cuda.plan.planner import MAX_BATCH
from pipeline.errors import PipelineError

# Host memory of LoadGen's list of queries and of the two lists it hands over, measured over 2 million samples.
QUERY_BYTES = 272
SAMPLE_BYTES = 46
HANDED_OVER_BYTES = 80

# LoadGen issues so much more than its minimum duration takes at the expected rate.
SLACK = 1.1

# A rate, a step between rates and an expected latency are divided by or counted up with.
_ABOVE_ZERO = re.compile(r".*_(qps|step_size|expected_latency_ns)")
_PROBABILITY = re.compile(r".*_(percentile|probability)")


def check_field(name: str, value: Any) -> None:
    """Raises ValueError, with the reason, for a value of the TestSettings field `name` that no test can run with."""
    if isinstance(value, str | bool):
        return
    if _ABOVE_ZERO.fullmatch(name) and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{value!r} is not above 0")
    if _PROBABILITY.fullmatch(name) and not 0 <= value <= 1:
        raise ValueError(f"{value!r} is not a share from 0 to 1")
    if name.endswith("samples_per_query") and not 1 <= value <= MAX_BATCH:
        raise ValueError(f"{value!r} is not a whole number from 1 to {MAX_BATCH:,}")
    if name == "server_num_issue_query_threads" and value:
        raise ValueError(f"{value!r} would wait for ever: queries are issued by LoadGen's own thread; leave it at 0")


def check_settings(settings: Mapping[str, Any], *, arrays: bool = False) -> None:
    """Raises PipelineError for plain TestSettings that no test can run with, wherever they come from.

    `arrays`: whether LoadGen hands queries over as arrays of its own memory, not as lists.
    """
    for name, value in settings.items():
        try:
            check_field(name, value)
        except ValueError as error:
            key = re.sub("^(offline|server|single_stream|multi_stream)_", "", name)
            raise PipelineError(f"--lgts_{name} ({key} in a configuration file): {error}") from None
    (queries, samples), needed = planned(settings), planned_bytes(settings, arrays=arrays)
    free = psutil.virtual_memory().available
    if needed > free:
        raise PipelineError(
            f"LoadGen would plan {queries:.3g} queries of {samples:.3g} samples, which take "
            f"{needed / 2**30:,.3g} GiB of memory, and {free / 2**30:,.3g} GiB are free: lower the expected rate, "
            "--lgts_min_duration_ms or --lgts_min_query_count"
        )


def planned_bytes(settings: Mapping[str, Any], *, arrays: bool = False) -> float:
    """Host memory of all that LoadGen makes before its clock starts."""
    queries, samples = planned(settings)
    handed_over = 0 if arrays else samples * HANDED_OVER_BYTES
    return queries * (QUERY_BYTES + samples * SAMPLE_BYTES) + handed_over


def planned(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Queries that LoadGen lists before its clock starts, and the samples of each; at least 1, and perhaps infinite.

    They follow from the minimum duration at the expected rate; a maximum cuts off the run, not the list.
    """
    scenario, least = settings["scenario"], max(1.0, float(settings["min_query_count"]))
    seconds = SLACK * settings["min_duration_ms"] / 1e3
    if scenario == "Offline":
        return 1.0, max(least, seconds * settings["offline_expected_qps"])
    if scenario == "Server":
        return max(least, seconds * settings["server_target_qps"]), 1.0
    if scenario == "SingleStream":
        return max(least, seconds * 1e9 / settings["single_stream_expected_latency_ns"]), 1.0
    queries = max(least, seconds * 1e9 / settings["multi_stream_expected_latency_ns"])
    return queries, float(settings["multi_stream_samples_per_query"])
