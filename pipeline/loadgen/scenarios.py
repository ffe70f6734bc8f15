"""LoadGen's scenarios: what each asks of batching, of LoadGen's settings, and what its result is called.

The rules are MLPerf's for ResNet-50: Server answers 99 % of its queries within 15 ms, MultiStream's queries are of 8
samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from pipeline.device.scheduler import Sizes

Scenario: TypeAlias = Literal["Offline", "SingleStream", "MultiStream", "Server"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

CPU_BATCH = 16
GPU_BATCH = 1024
CPU_SERVER_BATCH = 8
GPU_SERVER_BATCH = 256

# How long a sample may be held back for a batch to fill, of Server's 15 ms.
BATCH_TIMEOUT_US = 2000

SERVER_LATENCY_NS = 15_000_000

# LoadGen's settings where ours differ from its own. A Server query is one sample; those whose time has come while the
# one before was handed over are handed over together: a call of Python for each would be the limit.
_SETTINGS: Mapping[Scenario, Mapping[str, int | bool]] = {
    "Server": {"server_target_latency_ns": SERVER_LATENCY_NS, "server_coalesce_queries": True},
}

# LoadGen issues as many samples as last its minimum duration at the expected rate; an engine that turns out faster
# than its warm-up, beside loaders still starting, would end too soon.
RATE_MARGIN = 1.3

# One query after another, LoadGen ends too soon where answers come faster than expected: a warm-up beside loaders
# still starting may be several times too slow. Expecting too much costs a list of queries that are never asked.
LATENCY_MARGIN = 4.0

# Queries come at random times: at the engine's whole rate they would queue up without end.
SERVER_SHARE = 0.6


@dataclass(frozen=True)
class BatchPlan:
    """How a run batches.

    Attributes:
        sizes: that there is memory and a graph for.
        hold_s: how long a sample is held back for a batch to fill.
        inflight: batches in flight.
        busy_at: batches under way with which samples are held back.
    """

    sizes: Sizes
    hold_s: float
    inflight: int
    busy_at: int = 1


def batch_plan(
    scenario: Scenario,
    *,
    gpu: bool,
    batch_size: int | None,
    max_batch: int | None,
    batch_step: int | None,
    batch_timeout_us: int | None,
    busy_at: int | None,
    inflight: int,
    samples_per_query: int,
) -> BatchPlan:
    """The plan for what the user gave; None where nothing was given."""
    if scenario == "Offline":
        return BatchPlan(Sizes.full(batch_size or (GPU_BATCH if gpu else CPU_BATCH)), 0.0, inflight)
    if scenario == "Server":
        largest = max_batch or batch_size or (GPU_SERVER_BATCH if gpu else CPU_SERVER_BATCH)
        hold_us = BATCH_TIMEOUT_US if batch_timeout_us is None else batch_timeout_us
        sizes = Sizes.graded(largest) if batch_step is None else Sizes.stepped(largest, batch_step)
        return BatchPlan(sizes, hold_us / 1e6, inflight, busy_at or 1)
    # One query at a time: LoadGen sends the next one when it has the answer.
    return BatchPlan(Sizes.full(1 if scenario == "SingleStream" else samples_per_query), 0.0, 1)


def settings_defaults(scenario: Scenario) -> Mapping[str, int | bool]:
    """TestSettings fields that hold unless a configuration file or an option says otherwise."""
    return _SETTINGS.get(scenario, {})


def samples_per_query(scenario: Scenario, test_settings: Any) -> int:
    """Samples of a query where the scenario fixes them, else 1."""
    return int(test_settings.multi_stream_samples_per_query) if scenario == "MultiStream" else 1


def expectations(
    scenario: Scenario, given: Collection[str], rate: float, query_samples: int
) -> tuple[Mapping[str, float], str]:
    """TestSettings fields that the engine's own `rate` (samples/s) gives, and how to say so; none for `given` ones."""
    if scenario == "Offline":
        name, value, said = "offline_expected_qps", rate * RATE_MARGIN, "to expect {:,.1f} samples/s, from warming up"
    elif scenario == "Server":
        name, value = "server_target_qps", rate * SERVER_SHARE
        said = f"to ask {{:,.1f}} samples/s, {SERVER_SHARE:.0%} of what warming up gave"
    else:
        prefix = {"SingleStream": "single_stream", "MultiStream": "multi_stream"}[scenario]
        name, value = f"{prefix}_expected_latency_ns", int(1e9 * query_samples / max(rate, 1e-9) / LATENCY_MARGIN)
        said = f"to expect answers in {{:,.0f}} ns, a {LATENCY_MARGIN:g}th of what warming up took"
    if name in given or rate <= 0:
        return {}, ""
    return {name: value}, said.format(value)
