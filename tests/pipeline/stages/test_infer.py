"""An engine over the arena and the exchange, in this process: what it writes for a task."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from int4core import Engine, EngineError, Model
from pipeline.device.scheduler import Sizes
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.memory.segment import segment_folder
from pipeline.stages import infer
from pipeline.stages.channels import Task
from pipeline.stages.infer import Inferrer
from pipeline.stages.notices import engine_warnings
from pipeline.stages.spec import EngineSpec
from tests.pipeline.conftest import SIZE

SLOTS = 12
BATCH = 4


@contextmanager
def memory(
    folder: Path, model: Path, top: int, backend: str = "numpy", h2d: str = "auto"
) -> Iterator[tuple[Arena, Exchange, EngineSpec]]:
    with (
        Arena.create(SLOTS, (3, SIZE, SIZE), folder) as arena,
        Exchange.create(2, BATCH, folder, top=top) as exchange,
    ):
        rng = np.random.default_rng(1)
        for slot in range(SLOTS):
            arena.sample(slot)[:] = rng.integers(-128, 128, (3, SIZE, SIZE), dtype=np.int8)
        spec = EngineSpec(arena.spec, exchange.spec, model, backend, Sizes.full(BATCH), h2d=h2d, top=top)
        yield arena, exchange, spec


def assert_answers(arena: Arena, exchange: Exchange, model: Path, slots: list[np.ndarray]) -> None:
    """Records 0, 1, ... hold what the engine of the CPU gives for these slots."""
    with Engine(Model.load(model)) as engine:
        for record, of in enumerate(slots):
            x = arena.gather(of)
            np.testing.assert_array_equal(exchange.classes(record, len(of)), engine.top1(x))
            if exchange.spec.top:
                ids, scores = engine.top_k(x, exchange.spec.top)
                np.testing.assert_array_equal(exchange.top(record, len(of))[0], ids)
                np.testing.assert_array_equal(exchange.top(record, len(of))[1].view(np.int32), scores.view(np.int32))
                np.testing.assert_array_equal(exchange.classes(record, len(of)), ids[:, 0])


def test_a_trace_says_on_which_node_an_engine_is(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "whereabouts", lambda: ", node 1")
    with memory(tmp_path, model_dir, 0) as (_arena, _exchange, spec):
        inferrer = Inferrer(replace(spec, traced=True), 3)
        assert inferrer.tracer.to_records()[1] == "engine 3, node 1"
        inferrer.close()


@pytest.mark.parametrize("top", [0, 1, 5])
def test_the_answers_are_the_engines(model_dir: Path, tmp_path: Path, top: int) -> None:
    with memory(tmp_path, model_dir, top) as (arena, exchange, spec):
        inferrer = Inferrer(spec)
        slots = [np.array(slots, np.int32) for slots in ([7, 2, 11], [5, 5, 0, 1])]
        for ticket, of in enumerate(slots):
            inferrer.work(Task(ticket, len(of), exchange.take(of)))
        inferrer.close()
        assert_answers(arena, exchange, model_dir, slots)


@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("h2d", ["runs", "gather", "staged"])
@pytest.mark.parametrize("top", [0, 5])
def test_a_gpu_answers_as_the_cpu_does(model_dir: Path, top: int, h2d: str) -> None:
    from pipeline.stages.gpu import DeviceInferrer

    # The driver pins memory of /dev/shm, not that of a file on every disk.
    with memory(segment_folder(), model_dir, top, "cuda", h2d) as (arena, exchange, spec):
        inferrer = DeviceInferrer(spec)
        slots = [np.array(slots, np.int32) for slots in ([7, 2, 11], [5, 5, 0, 1])]
        for ticket, of in enumerate(slots):
            inferrer.begin(Task(ticket, len(of), exchange.take(of)))
        done: list[int] = []
        deadline = time.monotonic() + 60
        while not inferrer.idle and time.monotonic() < deadline:
            done += [answer.ticket for answer in inferrer.finished()]
        inferrer.close()
        assert sorted(done) == [0, 1]
        assert_answers(arena, exchange, model_dir, slots)


def test_more_classes_than_the_model_has_are_refused_before_the_first_task(model_dir: Path, tmp_path: Path) -> None:
    with memory(tmp_path, model_dir, 11) as (_, _, spec), pytest.raises(EngineError, match="top 11 of 10 classes"):
        Inferrer(spec)


def test_an_exchange_without_room_for_them_is_noticed(model_dir: Path, tmp_path: Path) -> None:
    with memory(tmp_path, model_dir, 5) as (arena, exchange, _), pytest.raises(ValueError, match="room for 5"):
        EngineSpec(arena.spec, exchange.spec, model_dir, "numpy", Sizes.full(BATCH), top=3)


@pytest.mark.parametrize(("batch_size", "samples"), [(1, 1), (16, 16), (256, 16), (2048, 16)])
def test_warming_up_takes_no_longer_with_a_larger_batch(
    batch_size: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 images take a slow CPU half a minute, in which the engine would say nothing."""
    shapes: list[tuple[int, ...]] = []
    inferrer = object.__new__(Inferrer)
    monkeypatch.setattr(inferrer, "_answers", lambda batch: shapes.append(batch.shape), raising=False)
    spec: Any = SimpleNamespace(batch_size=batch_size, arena=SimpleNamespace(sample_shape=(3, 8, 8)))
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("pipeline.stages.infer.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert inferrer._warm_up(spec) == samples / 2
    assert shapes == [(samples, 3, 8, 8)] * 2


def test_what_the_engine_warns_of_is_kept_for_who_shows_it() -> None:
    logger = logging.getLogger("int4core")
    with engine_warnings() as kept:
        for number in (100, 5, 100):
            logger.warning("mine:%d: kernel %d does not fit here", number, number)
        logger.info("said to nobody")
    logger.warning("said when nobody listens any more")
    assert tuple(kept.lines) == ("mine:100: kernel 100 does not fit here", "mine:5: kernel 5 does not fit here")
