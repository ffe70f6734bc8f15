from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.memory.exchange import Exchange, ExchangeSpec
from pipeline.stages.channels import Crashed, Done, Rates, Ready, ReportTrace, Stop, Task, Traced, decode, encode


def test_slots_go_one_way_and_classes_the_other(tmp_path: Path) -> None:
    with Exchange.create(3, 5, tmp_path) as ours, Exchange.attach(ours.spec) as theirs:
        first, second = ours.take(np.array([7, 8], np.int32)), ours.take(np.array([1, 2, 3, 4, 5], np.int32))
        assert first != second
        assert theirs.slots(first, 2).tolist() == [7, 8]
        assert theirs.slots(second, 5).tolist() == [1, 2, 3, 4, 5]
        theirs.classes(first, 2)[:] = [70, 80]
        theirs.classes(second, 5)[:] = 9
        assert ours.classes(first, 2).tolist() == [70, 80]
        assert ours.slots(second, 5).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("batch", "top"), [(5, 1), (16, 5), (33, 16)])
def test_the_best_classes_and_their_scores_come_back_too(tmp_path: Path, batch: int, top: int) -> None:
    with Exchange.create(3, batch, tmp_path, top=top) as ours, Exchange.attach(ours.spec) as theirs:
        records = [ours.take(np.arange(batch, dtype=np.int32) + 100 * i) for i in range(3)]
        for record in records:
            classes, ids, scores = theirs.answers(record, batch)
            assert (ids.shape, scores.shape, ids.dtype, scores.dtype) == (2 * ((batch, top),)) + (np.int32, np.float32)
            assert all(part.ctypes.data % 64 == 0 for part in (classes, ids, scores, theirs.slots(record, batch)))
            ids[:] = np.arange(ids.size).reshape(ids.shape) + 1000 * record
            scores[:] = ids / 8
            classes[:] = ids[:, 0]
        for i, record in enumerate(records):
            ids, scores = ours.top(record, batch - 1)
            assert ids.tolist() == (np.arange(batch * top).reshape(batch, top)[:-1] + 1000 * record).tolist()
            assert (scores * 8 == ids).all()
            assert (ours.classes(record, batch - 1) == ids[:, 0]).all()
            assert (ours.slots(record, batch) == np.arange(batch) + 100 * i).all(), "no part reaches into another"


def test_more_than_the_folder_has_room_for_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"1048576 batches under way need .* of shared memory .*smaller --batch_size"
    ):
        Exchange.create(1 << 20, 1 << 24, tmp_path)
    assert not any(tmp_path.iterdir())


def test_nothing_is_there_that_was_not_asked_for(tmp_path: Path) -> None:
    with Exchange.create(2, 20, tmp_path) as exchange:
        assert exchange.spec.total_bytes == 2 * 2 * 32 * 4
        assert len(exchange.answers(0, 20)) == 1
        assert [part.shape for part in exchange.top(0, 20)] == [(20, 0), (20, 0)]


def test_more_slots_than_a_record_has_are_not_taken(tmp_path: Path) -> None:
    with Exchange.create(1, 4, tmp_path, top=1) as exchange, pytest.raises(ValueError, match="broadcast"):
        exchange.take(np.zeros(5, np.int32))


def test_a_record_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with Exchange.create(2, 4, tmp_path) as exchange:
        slots = np.zeros(4, np.int32)
        a, b = exchange.take(slots), exchange.take(slots)
        assert exchange.free == 0
        with pytest.raises(IndexError):
            exchange.take(slots)
        exchange.give(a)
        with pytest.raises(ValueError, match="free already"):
            exchange.give(a)
        assert exchange.take(slots) == a
        assert b != a


def test_its_segment_goes_with_it(tmp_path: Path) -> None:
    exchange = Exchange.create(2, 4, tmp_path)
    assert Path(exchange.spec.path).stat().st_size == exchange.spec.total_bytes
    exchange.close()
    exchange.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(PipelineError, match="gone"):
        Exchange.attach(exchange.spec)


def test_one_that_does_not_fit_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="--batch_size or --inflight"):
        Exchange.create(10**9, 10**6, tmp_path)
    assert not list(tmp_path.iterdir())


def _child(spec: ExchangeSpec, record: int) -> None:
    with Exchange.attach(spec) as exchange:
        exchange.classes(record, 3)[:] = exchange.slots(record, 3) * 2


def test_across_processes(tmp_path: Path) -> None:
    with Exchange.create(1, 3, tmp_path) as exchange:
        record = exchange.take(np.array([1, 2, 3], np.int32))
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(exchange.spec, record))
        process.start()
        process.join()
        assert exchange.classes(record, 3).tolist() == [2, 4, 6]


def test_messages_about_records_are_a_few_bytes_and_no_pickle() -> None:
    task, done = Task(2**40, 1024, 3), Done(2**40, None, 0.25)
    assert decode(encode(task)) == task
    assert decode(encode(done)) == done
    assert max(len(encode(task)), len(encode(done))) <= 20
    assert len(encode(Task(1, 1, 1))) == len(encode(task))


@pytest.mark.parametrize(
    "message",
    [
        Task(1, 2, "x"),
        Done(1, [2], 0.5),
        Ready("GPU", Rates(3.0, None, 1.0)),
        ReportTrace(),
        Traced((1, "a", 0, (("decode", "main", 0.5, 1.0, (("files", 8),)),))),
        Crashed("a", "b"),
        Stop(),
    ],
)
def test_other_messages_travel_too(message: object) -> None:
    assert decode(encode(message)) == message
