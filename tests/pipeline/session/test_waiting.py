from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.session.waiting import SHORT, Batching, Waiting
from pipeline.telemetry.latency import Latencies


def query(begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.arange(begin, begin + count, dtype=np.uint64)
    return ids, (ids % 1000).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 8, SHORT - 1, SHORT, 1000]), max_size=30),
    st.lists(st.integers(1, 700), min_size=1, max_size=10),
)
def test_samples_come_out_once_and_in_order(queries: list[int], takes: list[int]) -> None:
    waiting, issued, taken = Waiting(), 0, []
    for i, count in enumerate(queries):
        waiting.put(*query(issued, count), now=float(i))
        issued += count
        ids, indices = waiting.take(takes[i % len(takes)])
        assert ids.dtype == np.uint64
        assert indices.dtype == np.int64
        assert (indices == ids % 1000).all()
        taken += ids.tolist()
        assert len(waiting) == issued - len(taken)
    while waiting:
        taken += waiting.take(97)[0].tolist()
    assert taken == list(range(issued))
    assert waiting.take(5)[0].size == 0


def test_it_knows_since_when_the_first_has_waited() -> None:
    waiting = Waiting()
    with pytest.raises(IndexError):
        _ = waiting.since
    waiting.put(*query(0, 1000), now=1.0)
    waiting.put(*query(1000, 1), now=2.0)
    assert waiting.since == 1.0
    waiting.take(999)
    assert waiting.since == 1.0
    waiting.take(1)
    assert waiting.since == 2.0


def test_twenty_million_samples_stay_arrays() -> None:
    ids, indices = query(0, 20_000_000)
    waiting, count = Waiting(), 0
    tracemalloc.start()
    waiting.put(ids, indices, now=0.0)
    while waiting:
        count += len(waiting.take(100_000)[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000_000
    assert peak < 1 << 20


def test_when_a_batch_is_cut() -> None:
    holding = Batching(8, 0.002)
    assert not holding.due(0, 1.0, busy=False)
    assert holding.due(1, 0.0, busy=False), "an idle engine waits for nothing"
    assert not holding.due(7, 0.001, busy=True)
    assert holding.due(7, 0.002, busy=True)
    assert holding.due(8, 0.0, busy=True)
    assert Batching(8).due(1, 0.0, busy=True), "without a time to hold, whatever is there goes"


def test_percentiles_are_within_two_percent() -> None:
    latencies = Latencies()
    assert latencies.percentiles_ms() == {}
    for i in range(1, 1001):
        latencies.add(i / 1000, 1)
    found = latencies.percentiles_ms()
    assert found["p50"] == pytest.approx(500, rel=0.025)
    assert found["p99"] == pytest.approx(990, rel=0.025)
    latencies.add(0.0, 10**6)
    latencies.add(1e9, 1)
    assert latencies.percentiles_ms()["p50"] < 0.02
