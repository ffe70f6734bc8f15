"""Samples that gather at the client's: when batches come for them, and that none is left there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.arrays import Ids, Indices
from pipeline.device.scheduler import Sizes
from pipeline.memory.arena import ArenaSpec
from pipeline.memory.exchange import Exchange
from pipeline.session import batches as batches_module
from pipeline.session.batches import Batches, Queue
from pipeline.session.waiting import Batching
from pipeline.stages.base import StageFailure
from pipeline.stages.infer import EngineSpec
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.session.test_batches import FakeInfer, SlowClient

SIZE = 100
RECORDS = 2
HOURS_S = 3600.0


class Place:
    """Where they gather, as tools/loadgen_arrays.h has it; the test is who asks."""

    def __init__(self, batches: Batches) -> None:
        self.wanted: list[int] = []
        self.age_s = 0.0
        """How long samples have been there when they come."""
        self.late = 0
        """Samples that come once, between the last `take` and the next `call_at`."""
        self._batches = batches
        self._ids: list[int] = []
        self._count = 0
        self._call_at = 1
        self._since = 0.0

    def arrive(self, count: int) -> None:
        self._add(count)
        if self._call_at and len(self._ids) >= self._call_at:
            self._call_at = 0
            self._batches.pump()

    def take(self) -> tuple[Ids, Indices, float] | None:
        taken, self._ids = self._ids, []
        return (np.array(taken, np.uint64), np.zeros(len(taken), np.int64), self._since) if taken else None

    def call_at(self, count: int) -> bool:
        self.wanted.append(count)
        late, self.late = self.late, 0
        self._add(late)
        there = 0 < count <= len(self._ids)
        self._call_at = 0 if there else count
        return there

    def _add(self, count: int) -> None:
        if not self._ids:
            self._since = time.monotonic() - self.age_s
        self._ids += range(self._count, self._count + count)
        self._count += count


class Setting:
    def __init__(self, exchange: Exchange, batches: Batches, batching: Batching) -> None:
        self.exchange, self.batches = exchange, batches
        self.infer: Any = batches.infer
        self.client = SlowClient()
        self.client.released.set()
        self.queue: Queue = batches.open(self.client, batching)
        self.place = self.queue.gathering = Place(batches)

    @property
    def under_way(self) -> list[int]:
        return [task.samples for task in self.infer.tasks]

    def answer(self) -> None:
        self.infer.answer(self.exchange, 1)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Exchange, Batches]]:
    monkeypatch.setattr(batches_module, "infer_stage", FakeInfer)
    failures = list[StageFailure]()
    with Exchange.create(RECORDS, SIZE, tmp_path) as exchange:
        engine = EngineSpec(ArenaSpec("", 1, (3, 8, 8)), exchange.spec, Path("none"), "numpy", Sizes.full(SIZE))
        batches = Batches(exchange, engine, timeout_s=PATIENCE_S, on_failure=failures.append)
        batches.start()
        try:
            yield exchange, batches
        finally:
            batches.stop()
    assert not failures


def test_an_engine_at_rest_has_the_first_sample_at_once(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, HOURS_S))
    setting.place.arrive(1)
    assert setting.under_way == [1]
    assert setting.place.wanted == [1], "the next is looked at, too: its wait begins"


def test_while_engines_work_a_batch_is_cut_when_it_is_full(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, HOURS_S))
    setting.place.arrive(1)
    setting.place.arrive(3)
    assert setting.place.wanted[-1] == SIZE - 3
    for _ in range(SIZE - 4):
        setting.place.arrive(1)
    assert setting.under_way == [1]
    assert len(setting.place.wanted) == 2, "nobody was called for those"
    setting.place.arrive(1)
    assert setting.under_way == [1, SIZE]


def test_an_engine_that_has_nothing_takes_what_has_gathered(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, HOURS_S))
    setting.place.arrive(1)
    setting.place.arrive(7)
    setting.place.arrive(8)
    setting.answer()
    assert setting.under_way == [15]
    assert setting.place.wanted[-1] == 1


def test_without_a_record_nobody_is_called_until_one_is_free(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, HOURS_S))
    setting.place.arrive(2 * SIZE + 5)
    assert setting.under_way == [SIZE, SIZE]
    assert setting.place.wanted == [SIZE - 5], "those five wait for a full batch"
    setting.place.arrive(SIZE)
    assert setting.place.wanted == [SIZE - 5, 0]
    setting.place.arrive(SIZE)
    assert setting.place.wanted == [SIZE - 5, 0]
    for left in ([SIZE, SIZE], [SIZE, SIZE], [SIZE], [5], []):
        setting.answer()
        assert setting.under_way == left


def test_what_comes_while_it_is_looked_at_is_not_left_there(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, 0.0))
    setting.place.late = 4
    setting.place.arrive(1)
    assert setting.under_way == [1, 4]


def test_a_sample_waits_from_when_it_came(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, 100.0))
    setting.place.arrive(1)
    setting.place.age_s = 1000.0
    setting.place.arrive(3)
    assert setting.under_way == [1, 3]
    for _ in range(2):
        setting.answer()
    setting.batches.complete.drain()
    assert (setting.queue.issued, setting.queue.completed) == (4, 4)
    assert setting.queue.latencies.percentiles_ms()["p99"] > 500_000


def test_what_is_put_comes_after_what_has_gathered(made: tuple[Exchange, Batches]) -> None:
    setting = Setting(*made, Batching(SIZE, HOURS_S))
    setting.place.arrive(1)
    setting.place.arrive(1)
    setting.place.arrive(2)
    setting.queue.put(np.arange(1000, 1000 + SIZE, dtype=np.uint64), np.zeros(SIZE, np.int64))
    setting.answer()
    setting.answer()
    setting.batches.complete.drain()
    assert [a.ids.tolist()[:4] for a in setting.client.answers] == [[0], [1, 2, 3, 1000]]
