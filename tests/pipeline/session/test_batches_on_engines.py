"""From a query to its answers through engine processes that have several batches under way on a slow device."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.scheduler import Scheduler, Sizes
from pipeline.errors import PipelineError
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.session import batches as batches_module
from pipeline.session.batches import Answered, Batches, Queue
from pipeline.session.waiting import Batching
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Done, Rates, Task
from pipeline.stages.process import ProcessStage
from pipeline.stages.spec import EngineSpec, records_for
from pipeline.stages.worker import serve_overlapped
from pipeline.telemetry.trace import Tracer
from tests.pipeline.conftest import PATIENCE_S, all_ended, wait_for
from tests.pipeline.fake_device import FakeBatch, FakeDevice

SLOTS = 50
SHAPE = (3, 8, 8)


class FakeInferrer:
    """What the process of a GPU does, on a device of threads."""

    def __init__(self, spec: EngineSpec, number: int) -> None:
        if spec.h2d == "staged":
            raise PipelineError(f"no memory for batches of {spec.batch_size}: choose a smaller --batch_size")
        arena, exchange = Arena.attach(spec.arena), Exchange.attach(spec.exchange)
        self._number = number
        self.patience_s = 0.0 if spec.batch_size == 1 else 1e-4
        self.tracer = Tracer(f"fake {number}")
        self._device = FakeDevice(arena, exchange, kernel_s=0.004, copy_s=0.001)
        self._scheduler: Scheduler[FakeBatch] = Scheduler(self._device, spec.sizes, spec.inflight)

    def note(self) -> str:
        return f"fake {self._number}"

    def notices(self) -> tuple[str, ...]:
        return ("of every engine",)

    def rates(self) -> Rates:
        return Rates(expected=100.0)

    @property
    def room(self) -> bool:
        return self._scheduler.room

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def begin(self, task: Task[int]) -> None:
        with self.tracer.span("launch", ticket=task.ticket):
            self._scheduler.begin(task.ticket, task.body, task.samples)

    def finished(self) -> list[Done[None]]:
        return [Done(answer.ticket, None, answer.busy_s) for answer in self._scheduler.finished()]

    def close(self) -> None:
        self._scheduler.drain()
        self._device.close()


class Answers:
    """A client whose samples are all loaded: sample i lies in slot (7 * i) % SLOTS."""

    def __init__(self) -> None:
        self.classes: dict[int, int] = {}
        self.twice: list[int] = []
        self.failures: list[StageFailure] = []
        self.failed = threading.Event()

    def slots_of(self, samples: np.ndarray) -> np.ndarray:
        return (samples * 7 % SLOTS).astype(np.int32)

    def filling(self) -> bool:
        return False

    def deliver(self, answered: Answered) -> None:
        for i, c in zip(answered.ids.tolist(), answered.classes.tolist(), strict=True):
            if i in self.classes:
                self.twice.append(i)
            self.classes[i] = c

    def fail(self, failure: StageFailure) -> None:
        self.failures.append(failure)
        self.failed.set()

    def wait(self, count: int) -> None:
        wait_for(lambda: len(self.classes) >= count or self.failures)


class Serving(Batches):
    """Batches with one client's queue."""

    queue: Queue

    def issue(self, ids: np.ndarray, indices: np.ndarray) -> None:
        self.queue.put(ids, indices)


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    sizes: Sizes,
    *,
    engines: int = 1,
    hold_s: float = 0.0,
    tracer: Tracer | None = None,
    **spec: Any,
) -> Iterator[tuple[Serving, Answers]]:
    def stage(spec: EngineSpec, **options: Any) -> ProcessStage[int, None]:
        return ProcessStage(
            "infer",
            partial(FakeInferrer, spec),
            workers=spec.engines,
            capacity=(spec.exchange.records + 1) * spec.batch_size,
            depth=spec.inflight + 1,
            serve=serve_overlapped,
            **options,
        )

    monkeypatch.setattr(batches_module, "infer_stage", stage)
    answers = Answers()
    records = records_for(engines, 3)
    with Arena.create(SLOTS, SHAPE, folder) as arena, Exchange.create(records, sizes.largest, folder) as exchange:
        for slot in range(SLOTS):
            arena.sample(slot).reshape(-1)[:4].view(np.int32)[0] = slot
        engine = EngineSpec(arena.spec, exchange.spec, Path("none"), "cuda", sizes, engines=engines, inflight=3, **spec)
        under_test = Serving(exchange, engine, timeout_s=PATIENCE_S, on_failure=answers.fail, tracer=tracer)
        under_test.queue = under_test.open(answers, Batching(sizes.largest, hold_s))
        try:
            under_test.start()
            yield under_test, answers
        finally:
            pids = under_test.infer.pids
            under_test.infer.stop()
            under_test.stop()
            wait_for(lambda: all_ended(pids))


def classes_of(indices: np.ndarray) -> dict[int, int]:
    return dict(enumerate((indices * 7 % SLOTS).tolist()))


@pytest.mark.parametrize("engines", [1, 2])
def test_a_long_query_with_repeats_is_answered_sample_by_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engines: int
) -> None:
    tracer = Tracer("pipeline")
    with serving(monkeypatch, tmp_path, Sizes.full(16), tracer=tracer, engines=engines) as (under_test, answers):
        under_test.infer.start()
        assert under_test.infer.notes == tuple(f"fake {i}" for i in range(engines))
        assert under_test.infer.notices == ("of every engine",)
        indices = np.random.default_rng(0).integers(0, 200, 3000)
        under_test.issue(np.arange(3000, dtype=np.uint64), indices)
        answers.wait(3000)
        under_test.infer.drain()
        under_test.complete.drain()
        assert answers.classes == classes_of(indices)
        assert not answers.twice
        assert not answers.failures
        infer, queue = under_test.infer.snapshot(), under_test.queue
        assert (queue.issued, queue.completed, infer.done) == (3000, 3000, 3000), "repeated samples are computed again"
        assert under_test.complete.snapshot().done == 3000, "batches that are handed over at once count as any other"
        assert len(infer.worker_rates) == engines
        assert min(under_test.infer.done_by_worker) > 0, "every engine has had a part of it"
        assert sum(infer.worker_rates) == pytest.approx(infer.rate)
        assert set(queue.latencies.percentiles_ms()) == {"p50", "p90", "p99"}
        assert queue.answering is not None
        rate = queue.answering.rate
        assert queue.answering.rate == rate, "the clock stops with the last answer"
        assert (queue.delivery_rate or 0) > rate
        # Every process reports what it saw: each batch once here, and once where it was computed.
        engines_spans = [spans for _, _, _, spans in under_test.infer.traces()]
        assert len(engines_spans) == engines
        launched = sorted(dict(span[4])["ticket"] for spans in engines_spans for span in spans)
        batches = [span for span in tracer.to_records()[3] if span[0] == "batch"]
        assert launched == sorted(dict(span[4])["ticket"] for span in batches) == list(range(len(batches)))
        lanes: dict[str, list[tuple[float, float]]] = {}
        for _, lane, begin_s, end_s, _ in batches:
            lanes.setdefault(lane, []).append((begin_s, end_s))
        for spans in lanes.values():
            spans.sort()
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "a record has a batch at a time"


def test_a_step_of_the_systems_clock_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(monkeypatch, tmp_path, Sizes.full(4)) as (under_test, answers):
        under_test.infer.start()
        assert under_test.queue.answering is None
        under_test.issue(np.arange(4, dtype=np.uint64), np.zeros(4, np.int64))
        answers.wait(4)
        monkeypatch.setattr(batches_module.time, "time", lambda now=time.time: now() - 3600)
        under_test.issue(np.arange(4, 8, dtype=np.uint64), np.zeros(4, np.int64))
        answers.wait(8)
        under_test.complete.drain()
        seen = under_test.queue.answering
        assert seen is not None
        assert seen.samples == 8
        assert 0 < seen.last_s - seen.first_s < 600
        assert seen.clock_step_s == pytest.approx(-3600, abs=300), "the moments at which both clocks are read are apart"


def test_queries_of_one_sample_go_together_while_the_engine_is_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving(monkeypatch, tmp_path, Sizes.graded(16), hold_s=0.005) as (under_test, answers):
        sizes: list[int] = []
        submit = under_test.infer.try_submit
        monkeypatch.setattr(under_test.infer, "try_submit", lambda task: (sizes.append(task.samples), submit(task))[1])
        rng = np.random.default_rng(1)
        indices = rng.integers(0, 200, 400)
        for i, index in enumerate(indices.tolist()):
            if i == 50:  # while it sets itself up, more samples come than it has records for
                under_test.infer.start()
            under_test.issue(np.array([i], np.uint64), np.array([index], np.int64))
            time.sleep(rng.exponential(0.001))
        answers.wait(400)
        assert answers.classes == classes_of(indices)
        assert not answers.twice
        assert sizes[0] == 1, "an idle engine gets the first sample at once"
        assert sum(sizes) == 400
        assert 1 < 400 / len(sizes) <= 16


def test_a_batch_is_ready_behind_the_one_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With `busy_at` 2, the samples of a second batch go at once, those after them wait for one of the two."""
    with serving(monkeypatch, tmp_path, Sizes.stepped(16, 4), hold_s=600.0) as (under_test, answers):
        under_test.queue = under_test.open(answers, Batching(16, 600.0, busy_at=2))
        sizes: list[int] = []
        submit = under_test.infer.try_submit
        monkeypatch.setattr(under_test.infer, "try_submit", lambda task: (sizes.append(task.samples), submit(task))[1])
        for i in range(9):  # the engine has not begun: nothing is answered yet
            under_test.issue(np.array([i], np.uint64), np.array([i], np.int64))
        assert sizes == [1, 1]
        under_test.infer.start()
        answers.wait(9)
        assert answers.classes == classes_of(np.arange(9))
        assert sum(sizes) == 9


def test_one_query_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(monkeypatch, tmp_path, Sizes.full(1)) as (under_test, answers):
        under_test.infer.start()
        for i in range(60):
            under_test.issue(np.array([i], np.uint64), np.array([i % 9], np.int64))
            answers.wait(i + 1)
            if i % 20 == 0:
                time.sleep(0.01)  # long enough for the engine's process to go to sleep
        assert answers.classes == classes_of(np.arange(60) % 9)
        assert not answers.failures


def test_a_last_sample_is_not_held_back_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(monkeypatch, tmp_path, Sizes.graded(8), hold_s=0.05) as (under_test, answers):
        under_test.infer.start()
        for i in range(3):
            under_test.issue(np.array([i], np.uint64), np.array([i], np.int64))
        answers.wait(3)
        assert answers.classes == classes_of(np.arange(3))


@pytest.mark.parametrize("victim", [0, 1])
def test_each_engine_killed_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: int) -> None:
    with serving(monkeypatch, tmp_path, Sizes.full(4), engines=2) as (under_test, answers):
        under_test.infer.start()
        under_test.issue(np.arange(100_000, dtype=np.uint64), np.zeros(100_000, np.int64))
        wait_for(lambda: answers.classes)
        pid = under_test.infer.pids[victim]
        os.kill(pid, signal.SIGKILL)
        assert answers.failed.wait(PATIENCE_S)
        assert f"worker {victim} (pid {pid}) was killed by SIGKILL" in str(answers.failures[0])
        assert len(answers.failures) == 1
    assert not list(tmp_path.iterdir())


def test_an_engine_without_memory_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(monkeypatch, tmp_path, Sizes.full(4), h2d="staged") as (under_test, answers):
        with pytest.raises(StageFailure, match="batches of 4: choose a smaller --batch_size"):
            under_test.infer.start()
        assert answers.failed.wait(PATIENCE_S)
        assert answers.failures[0].traceback == ""
    assert not list(tmp_path.iterdir())
