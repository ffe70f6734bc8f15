"""A session with its processes: sources in, answers out, and whatever sources do to loaders."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.machine.numa import Node
from pipeline.samples.sources import BytesLocator, Paths, Source, Sources
from pipeline.session import loading as loading_module
from pipeline.session import session as session_module
from pipeline.session.answers import Answer
from pipeline.session.batches import Answered
from pipeline.session.feeder import Feeder
from pipeline.session.progress import Progress
from pipeline.session.session import Session, as_source
from pipeline.session.spec import SessionSpec
from pipeline.session.waiting import Batching
from pipeline.stages.base import StageFailure
from tests.pipeline.conftest import IMAGES, PATIENCE_S, wait_for
from tests.pipeline.session.conftest import TOP, running
from tests.pipeline.slow_image import Hour, slow_jpeg


def test_answers_come_in_the_order_of_the_sources(session: Session, paths: list[str], best: list) -> None:
    answers = list(session.classify(paths))
    assert [a.source.key for a in answers] == paths
    assert [(a.classes, a.scores) for a in answers] == best
    assert not [a.error for a in answers if a.error]


def test_bytes_are_classified_as_their_file_is(session: Session, paths: list[str], best: list) -> None:
    data = [Path(p).read_bytes() for p in paths]
    # With a long comment, bytes are more than a slot holds.
    long = data[0][:2] + b"\xff\xfe\xff\xff" + bytes(0xFFFD) + data[0][2:]
    sources = [Source(f"{i}", BytesLocator(d)) for i, d in enumerate([*data, long, b""])]
    answers = list(session.classify(sources))
    assert [(a.classes, a.scores) for a in answers[:-1]] == [*best, best[0]]
    assert answers[-1].error == "the file is empty"


def test_a_bad_source_is_an_error_at_its_place(session: Session, paths: list[str], best: list, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(Path(paths[1]).read_bytes()[:600])
    text, cut, none = (str(tmp_path / name) for name in ("text.jpg", "cut.jpg", "none.jpg"))
    sources = [paths[0], text, paths[1], cut, none, paths[2]]
    answers = list(session.classify(sources))
    assert [a.error is None for a in answers] == [True, False, True, False, False, True]
    assert [a.classes for a in answers if a.error is None] == [classes for classes, _ in best[:3]]
    assert "no such file" in str(answers[4].error)
    assert session.loading.stage.snapshot().failed >= 3


def test_sources_are_read_no_further_than_there_is_room(session: Session, paths: list[str]) -> None:
    taken = 0

    def many() -> Iterator[str]:
        nonlocal taken
        while True:
            yield paths[taken % IMAGES]
            taken += 1

    answers = session.classify(many())
    for _ in range(3):
        next(answers)
    time.sleep(0.2)
    # What has been read ahead, what waits in the window, and the answers that came out of it together with the last.
    assert taken <= 3 * session.slots + 2
    answers.close()
    wait_for(lambda: session.leases == 0)


def test_what_the_sources_raise_comes_after_the_answers_before(session: Session, paths: list[str]) -> None:
    def broken() -> Iterator[str]:
        yield from paths[:5]
        raise OSError("the listing broke off")

    got: list[Answer] = []

    def collect() -> None:
        for answer in session.classify(broken()):
            got.append(answer)

    with pytest.raises(OSError, match="broke off"):
        collect()
    assert [a.source.key for a in got] == paths[:5]


def test_no_sources_give_no_answers(session: Session) -> None:
    assert list(session.classify([])) == []


def test_callers_side_by_side(session: Session, paths: list[str], best: list) -> None:
    kept: dict[int, list[Answer]] = {}

    def call(number: int) -> None:
        kept[number] = list(session.classify(paths * 3, ordered=number % 2 == 0))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    future = session.submit(paths[7])
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (future.result(PATIENCE_S).classes, future.result().scores) == best[7]
    by_key = dict(zip(paths, best, strict=True))
    for number, answers in kept.items():
        keys = [a.source.key for a in answers]
        assert (keys if number % 2 == 0 else sorted(keys)) == (paths * 3 if number % 2 == 0 else sorted(paths * 3))
        assert all((a.classes, a.scores) == by_key[a.source.key] for a in answers)


def test_pinned_samples_are_asked_for_by_their_slots(session: Session, paths: list[str], best: list) -> None:
    pinned = session.pin([*paths[:6], "nowhere.jpg"])
    assert "no such file" in str(pinned[-1])
    slots = np.array(pinned[:-1], np.int32)
    assert session.leases == len(slots)
    received: list[Answered] = []

    class Client:
        def slots_of(self, indices: np.ndarray) -> np.ndarray:
            return slots[indices]

        def filling(self) -> bool:
            return False

        def deliver(self, answered: Answered) -> None:
            received.append(answered)

    queue = session.queries(Client(), Batching(4))
    asked = np.array([5, 0, 0, 3, 5, 1, 2], np.int64)
    queue.put(np.arange(100, 107, dtype=np.uint64), asked)
    wait_for(lambda: queue.completed == len(asked))
    classes = {int(i): int(c) for r in received for i, c in zip(r.ids, r.classes, strict=True)}
    assert classes == {100 + i: best[a][0][0] for i, a in enumerate(asked.tolist())}
    assert queue.completed == queue.issued == 7
    session.batches.close(queue)
    session.unpin(slots.tolist())
    assert session.leases == 0


def test_pins_whose_caller_is_interrupted_are_given_back(
    session: Session, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = session.loading.outcomes

    def interrupted(*args: Any, **options: Any) -> Iterator[Any]:
        with closing(outcomes(*args, **options)) as some:
            yield next(some)
            raise KeyboardInterrupt

    monkeypatch.setattr(session.loading, "outcomes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.pin(paths[:6])
    wait_for(lambda: session.leases == 0)


def test_more_pins_than_slots_are_refused(session: Session, paths: list[str]) -> None:
    with pytest.raises(PipelineError, match="slots are free"):
        session.pin([paths[0]] * (session.slots + 1))


def test_a_loader_that_is_killed_costs_nothing(session: Session, paths: list[str], best: list) -> None:
    answers = session.classify(paths * 8)
    got = [next(answers)]
    os.kill(session.loading.stage.pids[0], signal.SIGKILL)
    got += answers
    assert [(a.classes, a.scores) for a in got] == best * 8
    # All may have been answered before it is noticed; and it is to be there before the next test counts processes.
    wait_for(lambda: session.loading.stage.replaced and session.loading.stage.ready)


def test_a_source_that_takes_too_long_is_an_error_and_no_other_is(
    spec: SessionSpec, paths: list[str], best: list, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(slow_jpeg())
    with running(replace(spec, image_timeout_s=1800.0)) as session, Hour(slow, session.loading.stage):
        answers = list(session.classify([*paths[:3], str(slow), *paths[3:]]))
        assert session.leases == 0
    assert "1800 s" in str(answers.pop(3).error)
    assert [(a.classes, a.scores) for a in answers] == best


@pytest.mark.usefixtures("clean")
def test_a_dead_engine_ends_the_session_and_everyone_is_told(spec: SessionSpec, paths: list[str]) -> None:
    failures: list[StageFailure] = []
    with Session(spec, on_failure=failures.append) as session:
        session.start()
        os.kill(session.batches.infer.pids[0], signal.SIGSTOP)
        future = session.submit(paths[0])
        answers = session.classify(paths)
        os.kill(session.batches.infer.pids[0], signal.SIGKILL)
        with pytest.raises(StageFailure, match="SIGKILL"):
            list(answers)
        with pytest.raises(StageFailure, match="SIGKILL"):
            future.result(PATIENCE_S)
        with pytest.raises(StageFailure, match="SIGKILL"):
            session.submit(paths[0])
    assert len(failures) == 1


@pytest.mark.usefixtures("clean")
def test_whoever_waits_at_the_end_of_a_session_is_told(spec: SessionSpec, paths: list[str]) -> None:
    with running(spec) as session:
        os.kill(session.batches.infer.pids[0], signal.SIGSTOP)
        future = session.submit(paths[0])
        os.kill(session.batches.infer.pids[0], signal.SIGCONT)
        answers = session.classify(iter(lambda: paths[0], None))
        next(answers)
    with pytest.raises(PipelineError, match="session is over"):
        for _ in answers:
            pass
    assert future.done()


def test_a_source_that_is_answered_while_the_session_ends_ends_with_it(
    spec: SessionSpec, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[StageFailure] = []
    with Session(spec, on_failure=failures.append) as session:  # no process is started: this test is all of them
        loading = session.loading
        future = session.submit(paths[0])
        ready = loading.core.prepared(1, {})
        columns = [np.zeros((1, TOP), np.int32), np.zeros((1, TOP), np.float32)]
        late = threading.Thread(target=loading.answered, args=(ready.numbers, columns))
        unanswered = loading.core.unanswered

        def answered_meanwhile(stream: Any) -> Any:
            left = unanswered(stream)
            late.start()
            late.join(0.5)  # where it may not yet, it waits for whoever ends the session
            return left

        monkeypatch.setattr(loading.core, "unanswered", answered_meanwhile)
        session._fail(StageFailure("infer", "it is dead"))
        late.join()
        assert session.leases == 0
    assert len(failures) == 1
    with pytest.raises(StageFailure, match="it is dead"):
        future.result(0)


@pytest.mark.usefixtures("clean")
def test_bytes_that_are_read_after_the_end_of_a_session_leave_no_segment(spec: SessionSpec) -> None:
    ended, threads = threading.Event(), []

    def late() -> Iterator[Source]:
        threads.append(threading.current_thread())
        assert ended.wait(PATIENCE_S)
        yield Source("late", BytesLocator(bytes(2**20)))  # more than a slot holds

    with Session(spec) as session:
        answers = session.classify_in_batches(((source,) for source in late()), wait_s=0.0)
        assert not len(next(answers))
        wait_for(lambda: threads)
    ended.set()
    threads[0].join()
    with pytest.raises(PipelineError, match="session is over"):
        next(answers)


def test_a_trace_says_on_which_node_the_arena_is(spec: SessionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (Node(0, frozenset({0})), Node(1, frozenset({1})))
    monkeypatch.setattr(session_module, "memory_nodes", lambda: nodes)
    monkeypatch.setattr(session_module, "shares_of", lambda _path: {0: 0.25, 1: 0.75})
    with Session(replace(spec, traced=True)) as session:
        assert session._tracer.to_records()[1] == "pipeline, arena 25 % on node 0, 75 % on node 1"


def test_no_memory_for_the_samples_is_said_with_the_remedy_of_who_asks(spec: SessionSpec) -> None:
    with pytest.raises(PipelineError, match="--batch_size, --loaders"):
        Session(replace(spec, slots=10**9))
    with pytest.raises(PipelineError, match="buy a larger machine"):
        Session(replace(spec, slots=10**9, memory_remedy="buy a larger machine"))


def test_a_key_is_what_the_user_named(tmp_path: Path) -> None:
    assert as_source(tmp_path / "a.jpg").key == str(tmp_path / "a.jpg")


def test_a_source_is_not_kept_waiting_for_those_after_it(session: Session, paths: list[str], best: list) -> None:
    came = [threading.Event() for _ in range(40)]

    def slowly() -> Iterator[str]:
        for event in came:
            yield paths[3]
            assert event.wait(PATIENCE_S), "no answer to a source before the next one is read"

    for event, answer in zip(came, session.classify(slowly()), strict=True):
        assert (answer.classes, answer.scores) == best[3]
        event.set()


def test_a_source_that_found_no_room_is_not_kept_waiting_for_those_after_it(
    spec: SessionSpec, paths: list[str], best: list
) -> None:
    all_answered = threading.Event()
    with running(replace(spec, slots=4)) as session:
        engine = session.batches.infer.pids[0]
        os.kill(engine, signal.SIGSTOP)

        def more_than_there_is_room_for() -> Iterator[str]:
            yield from paths[:4]
            wait_for(lambda: session.leases == 4 and not session.loading.core.preparing)
            yield paths[4]
            os.kill(engine, signal.SIGCONT)
            assert all_answered.wait(PATIENCE_S), "no answer to a source before the next one is read"

        for answer, (classes, _) in zip(session.classify(more_than_there_is_room_for()), best, strict=False):
            assert answer.classes == classes
            if answer.source.key == paths[4]:
                all_answered.set()
        assert all_answered.is_set()


@pytest.mark.parametrize("ordered", [True, False])
def test_nobody_has_to_look_again_by_himself(
    ordered: bool, spec: SessionSpec, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is woken by what he waits for, with few slots and none who look whether they were forgotten."""
    monkeypatch.setattr(loading_module, "POLL_S", 1e5)
    some = [path if number % 5 else f"{path}.not" for number, path in enumerate(8 * paths)]
    found: list[list[str]] = []
    with running(replace(spec, slots=5)) as session:

        def classify() -> None:
            found.append([answer.source.key for answer in session.classify(some, ordered=ordered)])

        callers = [threading.Thread(target=classify, daemon=True) for _ in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE_S)
    assert list(map(sorted, found)) == 2 * [sorted(some)]
    assert not ordered or found == 2 * [some]


def test_answers_by_columns(session: Session, paths: list[str], best: list) -> None:
    found = Sources([*paths, "nowhere"], Paths([*paths, "nowhere.jpg"]), [*range(IMAGES), None])
    for ordered in (True, False):
        parts = list(session.classify_in_batches([found[:3], found[3:4], found[4:]], ordered=ordered))
        assert max(map(len, parts)) > 1
        answers = {answer.source: answer for part in parts for answer in part}
        came = [source for part in parts for source in part.sources]
        assert set(came) == set(found)
        assert len(came) == len(found)
        assert not ordered or came == list(found)
        assert [(answers[s].classes, answers[s].scores) for s in found[:-1]] == best
        assert "no such file" in str(answers[found[-1]].error)
        assert [part.classes.shape for part in parts] == [part.scores.shape for part in parts]
    assert [len(part) for part in session.classify_in_batches([Sources([], [])])] == []


def test_a_caller_that_leaves_before_its_sources_are_read_leaves_no_inbox(
    session: Session, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, threads = threading.Event(), []
    run = Feeder._run

    def late(feeder: Feeder) -> None:
        threads.append(threading.current_thread())
        assert left.wait(PATIENCE_S)
        run(feeder)

    monkeypatch.setattr(Feeder, "_run", late)
    answers = session.classify_in_batches(((as_source(path),) for path in paths), wait_s=0.0)
    next(answers)
    answers.close()
    left.set()
    wait_for(lambda: threads)
    threads[0].join()
    assert not session.loading._inboxes


def test_a_rate_may_be_asked_for_while_the_first_answers_are_counted(session: Session) -> None:
    rates: list[float] = []

    class Asked(Progress):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            rates.append(self.rate)

    progress = Asked(session)
    progress.enter("running")
    progress.add(7)
    assert rates[-1] > 0
    assert min(rates) == 0


def test_callers_that_leave_at_once_leave_nothing(session: Session, paths: list[str], best: list) -> None:
    for _ in range(50):
        answers = session.classify_in_batches(((as_source(path),) for path in paths), wait_s=0.0)
        next(answers)
        answers.close()
    assert [a.classes for a in session.classify(paths)] == [classes for classes, _ in best]
    wait_for(lambda: session.leases == 0)
