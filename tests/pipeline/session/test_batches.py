"""Batches on their way to engines and back, without engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.scheduler import Sizes
from pipeline.memory.arena import ArenaSpec
from pipeline.memory.exchange import Exchange
from pipeline.session import batches as batches_module
from pipeline.session.batches import Answered, Batches, Queue
from pipeline.session.waiting import Batching
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.infer import EngineSpec
from tests.pipeline.conftest import PATIENCE_S

SIZE = 100


class FakeInfer:
    """Stands in for the stage of engines: keeps what it is given until the test answers it."""

    def __init__(
        self,
        _engine: EngineSpec,
        *,
        on_result: Callable[[Task[int], None], None],
        on_room: Callable[[], None],
        **_options: Any,
    ) -> None:
        self.tasks: list[Task[int]] = []
        self._on_room = on_room
        self._on_result = on_result

    def try_submit(self, task: Task[int]) -> bool:
        self.tasks.append(task)
        return True

    def answer(self, exchange: Exchange, value: int) -> None:
        task = self.tasks.pop(0)
        exchange.classes(task.body, task.samples)[:] = value
        self._on_result(task, None)
        self._on_room()


class SlowClient:
    """Takes nothing until `released`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.answers: list[Answered] = []

    def slots_of(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros(len(indices), dtype=np.int32)

    def filling(self) -> bool:
        return False

    def deliver(self, answered: Answered) -> None:
        self.released.wait(PATIENCE_S)
        self.answers.append(answered)


def test_answers_that_wait_are_not_those_of_the_batch_that_has_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "infer_stage", FakeInfer)
    client, failures = SlowClient(), list[StageFailure]()
    with Exchange.create(1, SIZE, tmp_path) as exchange:
        engine = EngineSpec(ArenaSpec("", 1, (3, 8, 8)), exchange.spec, Path("none"), "numpy", Sizes.full(SIZE))
        batches = Batches(exchange, engine, timeout_s=PATIENCE_S, on_failure=failures.append)
        infer: Any = batches.infer
        batches.start()
        try:
            queue = batches.open(client, Batching(SIZE, 0.0))
            queue.put(np.arange(3 * SIZE, dtype=np.uint64), np.zeros(3 * SIZE, dtype=np.int64))
            for value in (1, 2, 3):
                assert len(infer.tasks) == 1, "there is one record"
                infer.answer(exchange, value)
            client.released.set()
            batches.complete.drain()
        finally:
            client.released.set()
            batches.stop()
    assert [set(a.classes.tolist()) for a in client.answers] == [{1}, {2}, {3}]
    assert [a.ids.tolist() for a in client.answers] == [list(range(i * SIZE, (i + 1) * SIZE)) for i in range(3)]
    assert not failures


def test_the_time_of_answering_may_be_asked_for_while_the_first_answers_are_counted() -> None:
    rates: list[float] = []

    class Asked(Queue):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if asking and (answering := self.answering) is not None:
                rates.append(answering.rate)

    asking = False
    unused: Any = None
    queue, asking = Asked(unused, SlowClient(), Batching(SIZE)), True
    put_s = time.monotonic() - 1.0
    queue.count_issued(SIZE, put_s)
    queue.count_completed(SIZE, put_s, put_s)
    assert rates
    assert max(rates) <= SIZE
