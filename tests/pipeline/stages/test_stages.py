from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.report.history import History
from pipeline.stages import base
from pipeline.stages import clock as clock_module
from pipeline.stages import process as process_module
from pipeline.stages.base import Stage, StageFailure
from pipeline.stages.channels import FROM_WORKER, TO_WORKER, Channel, ChannelClosed, Done, Ready, Stop, Task
from pipeline.stages.clock import LONGEST_STEP_S, AwakeClock
from pipeline.stages.process import ProcessStage
from pipeline.stages.thread import ThreadStage
from pipeline.stages.worker import GROUP_SIGNALS, serve
from pipeline.telemetry.metrics import Snapshot
from tests.pipeline.conftest import PATIENCE_S, all_ended, wait_for
from tests.pipeline.judged import judged_clock
from tests.pipeline.stages.workers import Doubler, Gated, Spared, Starter, tell_mask


class Outcome:
    def __init__(self) -> None:
        self.results: dict[int, int] = {}
        self.failures: list[StageFailure] = []
        self.failed = threading.Event()

    def result(self, task: Task[int], result: int) -> None:
        self.results[task.body] = result

    def failure(self, failure: StageFailure) -> None:
        self.failures.append(failure)
        self.failed.set()


@contextmanager
def processes(outcome: Outcome, **changed: Any) -> Iterator[ProcessStage[int, int]]:
    options: dict[str, Any] = {"workers": 2, "capacity": 8, "timeout_s": PATIENCE_S} | changed
    maker = options.pop("make_worker", Doubler)
    on_result = options.pop("on_result", outcome.result)
    stage: ProcessStage[int, int] = ProcessStage(
        "double", maker, on_result=on_result, on_failure=outcome.failure, **options
    )
    try:
        stage.start()
        yield stage
    finally:
        pids = stage.pids
        stage.stop()
        wait_for(lambda: all_ended(pids))


def submit_all(stage: Stage[int, int], numbers: range) -> None:
    for number in numbers:
        stage.submit(Task(number, 1, number))


def test_every_task_is_done_once_by_several_processes() -> None:
    outcome = Outcome()
    with processes(outcome) as stage:
        submit_all(stage, range(50))
        stage.drain()
        assert outcome.results == {n: 2 * n for n in range(50)}
        assert len(set(stage.notes)) == 2
        assert stage.notices == ()
        assert stage.expected_rate == 100.0
        seen = stage.snapshot()
        assert (seen.done, seen.queued, seen.workers, seen.failed) == (50, 0, 2, 0)
        assert 0 < seen.busy <= 1
        assert seen.rate > 0
    assert not outcome.failures


def test_the_collector_leaves_out_what_a_worker_has_set_up() -> None:
    outcome = Outcome()
    with processes(outcome, make_worker=Spared) as stage:
        submit_all(stage, range(4))
        stage.drain()
        assert all(count > 1000 for count in outcome.results.values())


def test_submit_waits_and_try_submit_declines_while_the_stage_is_full() -> None:
    outcome = Outcome()
    gate = multiprocessing.get_context("spawn").Event()
    with processes(outcome, workers=1, capacity=2, make_worker=partial(Gated, gate)) as stage:
        assert stage.try_submit(Task(1, 1, 1))
        assert stage.try_submit(Task(2, 1, 2))
        assert not stage.try_submit(Task(3, 1, 3))
        threading.Timer(0.1, gate.set).start()
        stage.submit(Task(3, 1, 3))
        assert stage.snapshot().queued <= 2
        stage.drain()
    assert outcome.results == {1: 2, 2: 4, 3: 6}


def test_a_task_larger_than_the_stage_goes_in_alone() -> None:
    outcome = Outcome()
    gate = multiprocessing.get_context("spawn").Event()
    with processes(outcome, workers=1, capacity=2, make_worker=partial(Gated, gate)) as stage:
        stage.submit(Task(1, 100, 1))
        assert not stage.try_submit(Task(2, 1, 2))
        gate.set()
        stage.drain()
    assert outcome.results == {1: 2}


def test_an_exception_in_a_worker_fails_the_stage_with_its_traceback() -> None:
    outcome = Outcome()
    with processes(outcome) as stage:
        stage.submit(Task(0, 1, -5))
        with pytest.raises(StageFailure, match="-5 is negative"):
            stage.drain()
        with pytest.raises(StageFailure):
            stage.submit(Task(1, 1, 1))
        with pytest.raises(StageFailure):
            stage.try_submit(Task(1, 1, 1))
    assert len(outcome.failures) == 1
    assert "ValueError: -5 is negative" in outcome.failures[0].traceback


def test_an_exception_while_setting_up() -> None:
    outcome = Outcome()
    with (
        pytest.raises(StageFailure, match="cannot set up"),
        processes(outcome, make_worker=partial(Doubler, fail_at_start=True)),
    ):
        pass
    assert len(outcome.failures) == 1


def test_a_killed_worker_is_noticed_by_its_end_and_named() -> None:
    outcome = Outcome()
    with processes(outcome, timeout_s=600.0) as stage:
        stage.submit(Task(0, 1, 10**7))
        pid = stage.pids[0]
        os.kill(pid, signal.SIGKILL)
        assert outcome.failed.wait(PATIENCE_S), "not by its silence, which is allowed for longer"
        assert f"pid {pid}" in str(outcome.failures[0])
        assert "SIGKILL" in str(outcome.failures[0])


def test_a_killed_worker_is_noticed_though_another_always_has_a_result() -> None:
    outcome = Outcome()

    def busy(task: Task[int], _result: int) -> None:
        first, second = stage._children
        if task.body == 0:
            os.kill(second.pid, signal.SIGKILL)
        if not over.is_set():
            stage.try_submit(Task(task.ticket + 20, 1, task.body + 20))
            first.channel.pending(PATIENCE_S if first.tasks else 0.0)  # by now it has done the next one

    over = threading.Event()
    with processes(outcome, capacity=100, on_result=busy) as stage:
        submit_all(stage, range(20))
        noticed = outcome.failed.wait(PATIENCE_S)
        over.set()
        assert noticed
    assert "SIGKILL" in str(outcome.failures[0])


def test_a_hung_worker_is_taken_as_failed_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, judged = Outcome(), judged_clock(monkeypatch)
    with processes(outcome, workers=1) as stage:
        stage._timeout_s = 3.0
        judged.let_pass(10.0)
        wait_for(lambda: judged.is_over)
        stage.submit(Task(0, 1, 10**7))
        judged.let_pass(2.0)
        wait_for(lambda: judged.is_over)
        assert not outcome.failures, "an idle worker is not a hung one, nor is one that has had less time"
        judged.let_pass(3.0)
        with pytest.raises(StageFailure, match="silent on a task for 3 s"):
            stage.drain()


def test_stop_kills_a_worker_that_hangs() -> None:
    outcome = Outcome()
    with processes(outcome, workers=1) as stage:
        stage.submit(Task(0, 1, 10**7))
        pid = stage.pids[0]
        stage.stop()
        assert all_ended([pid])
        with pytest.raises(StageFailure, match="stopped"):
            stage.drain()
    assert not outcome.failures


def test_what_a_worker_has_started_ends_with_it() -> None:
    outcome = Outcome()
    with processes(outcome, workers=1, make_worker=Starter) as stage:
        stage.submit(Task(0, 1, 1))
        worker = psutil.Process(stage.pids[0])
        wait_for(worker.children)
        (started,) = worker.children()
        stage.stop()
        wait_for(lambda: all_ended([started.pid]))


def test_a_wait_ends_when_the_stage_is_stopped_by_another_thread() -> None:
    outcome = Outcome()
    with processes(outcome, workers=1) as stage:
        stage.submit(Task(0, 1, 10**7))
        threading.Timer(0.2, stage.stop).start()
        with pytest.raises(StageFailure, match="stopped"):
            stage.drain()


def test_a_watcher_that_cannot_watch_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    outcome = Outcome()
    monkeypatch.setattr(process_module.selectors, "DefaultSelector", refuse)
    with pytest.raises(StageFailure, match="too many open files"), processes(outcome):
        pass
    assert len(outcome.failures) == 1


def test_a_watcher_that_is_gone_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome()
    monkeypatch.setattr(ProcessStage, "_watch", lambda _self: None)
    with pytest.raises(StageFailure, match="thread has ended"), processes(outcome):
        pass
    assert len(outcome.failures) == 1


def test_a_process_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("pipeline.stages.child.SpawnProcess.start", refuse)
    outcome = Outcome()
    with (
        pytest.raises(StageFailure, match=r"worker 0 cannot be started: no more processes.*ulimit -u"),
        processes(outcome),
    ):
        pass


def test_time_that_passes_while_the_process_is_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        ahead_s = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.ahead_s

    fake = Time()
    monkeypatch.setattr(clock_module, "time", fake)
    clock = AwakeClock()
    fake.ahead_s = 1000.0
    assert clock.tick() == LONGEST_STEP_S
    assert clock.tick() < LONGEST_STEP_S + 0.5

    outcome = Outcome()
    with processes(outcome, workers=1) as stage:
        submit_all(stage, range(50))
        fake.ahead_s += 1000.0
        stage.drain()
    assert len(outcome.results) == 50
    assert not outcome.failures


def test_workers_are_born_with_the_groups_signals_blocked() -> None:
    with processes(Outcome(), workers=1, serve=tell_mask) as stage:
        assert stage.notes == ("SIGHUP SIGINT SIGTERM",)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(GROUP_SIGNALS), "ours are as they were"


def test_workers_ignore_the_groups_signals() -> None:
    ours, theirs = multiprocessing.Pipe()
    channel = Channel(ours, sends=TO_WORKER, receives=FROM_WORKER)
    channel.send(Stop())
    seen: list[Any] = []

    def make_worker() -> Doubler:
        seen.extend(signal.getsignal(number) for number in GROUP_SIGNALS)
        return Doubler()

    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS}
    try:
        serve(theirs, make_worker)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIG_IGN] * 3


def test_a_wake_up_follows_every_finished_task() -> None:
    outcome = Outcome()
    left, one_at_a_time = list(range(20)), threading.Lock()

    def pump() -> None:
        with one_at_a_time:
            while left and stage.try_submit(Task(left[0], 1, left[0])):
                left.pop(0)

    with processes(outcome, workers=1, capacity=2, on_room=pump) as stage:
        pump()
        wait_for(lambda: len(outcome.results) == 20)
    assert outcome.results == {n: 2 * n for n in range(20)}


def test_whoever_is_given_a_result_finds_it_counted() -> None:
    counts: list[tuple[int, int]] = []
    stage: ThreadStage[int, int] = ThreadStage(
        "thread",
        lambda body: body,
        capacity=4,
        on_result=lambda task, _result: counts.append((task.body, stage.snapshot().done)),
        on_failure=pytest.fail,
    )
    stage.start()
    submit_all(stage, range(1, 4))
    stage.drain()
    stage.stop()
    assert counts == [(1, 1), (2, 2), (3, 3)]


def test_a_thread_stage_keeps_the_order_and_fails_the_same_way() -> None:
    outcome = Outcome()

    def work(body: int) -> int:
        return Doubler().work(Task(0, 1, body))

    stage: ThreadStage[int, int] = ThreadStage(
        "thread", work, capacity=4, on_result=outcome.result, on_failure=outcome.failure
    )
    stage.start()
    submit_all(stage, range(10))
    stage.drain()
    assert list(outcome.results) == list(range(10))
    stage.submit(Task(10, 1, -1))
    with pytest.raises(StageFailure, match="-1 is negative"):
        stage.drain()
    stage.stop()
    assert "ValueError" in outcome.failures[0].traceback


def test_a_task_that_is_done_at_once_counts_as_any_other() -> None:
    outcome = Outcome()
    stage: ThreadStage[int, int] = ThreadStage(
        "thread", lambda body: 6 // body, capacity=4, on_result=outcome.result, on_failure=outcome.failure
    )
    stage.start()
    stage.do_now(Task(0, 40, 1))
    stage.submit(Task(1, 2, 2))
    stage.drain()
    seen = stage.snapshot()
    assert (seen.done, seen.queued) == (42, 0)
    assert outcome.results == {1: 6, 2: 3}
    stage.do_now(Task(2, 1, 0))
    assert [failure.stage for failure in outcome.failures] == ["thread"]
    stage.stop()


class SlowWorkers(Stage[int, None]):
    """Workers that take batches of `samples` one after another, each so many seconds from its own start on."""

    def __init__(self, starts_s: Sequence[float], batch_s: float, samples: int) -> None:
        super().__init__("slow", len(starts_s), 0, lambda _task, _result: None, lambda _failure: None)
        self._began_s = min(starts_s)
        self._ends = [start + batch_s for start in starts_s]
        self._starts, self._batch_s, self._samples = starts_s, batch_s, samples

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def _enqueue(self, task: Task[int]) -> None: ...

    def _up(self) -> int:
        return self.workers

    def _under_way(self) -> Sequence[int]:
        return [self._samples if base.time.monotonic() >= start else 0 for start in self._starts]

    def work_until(self, now: float) -> None:
        for worker, end in enumerate(self._ends):
            if now >= end:
                self._queued += self._samples
                self._finish(Task(0, self._samples, 0), None, self._batch_s, worker)
                self._ends[worker] = end + self._batch_s


@pytest.mark.parametrize("starts", [[0.0], [0.0, 0.0], [0.0, 1.25], [0.25, 0.5, 2.5]])
def test_rates_and_peak_are_over_whole_batches(starts: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 16 that take 3 s, seen every 0.25 s: 16 / 3 samples/s per worker, and at no time anything else."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: clock.now))
    stage, history = SlowWorkers(starts, 3.0, 16), History()
    rates, busy = [], []
    for step in range(160):
        clock.now = step * 0.25
        stage.work_until(clock.now)
        seen = stage.snapshot()
        run = Snapshot("running", clock.now, seen.done, 10_000, seen.rate, 0.0, (seen,), seen.counted, seen.counted_s)
        history.add(clock.now, run)
        if len(starts) == 1 and clock.now >= 3:
            assert seen.rate == pytest.approx(16 / 3), "from the first batch on"
        if clock.now >= 12:
            rates.append(seen.rate)
            busy.append(seen.busy)
            assert seen.rate == pytest.approx(sum(seen.worker_rates))
    steady = len(starts) * 16 / 3
    assert rates == pytest.approx([steady] * len(rates))
    assert busy == pytest.approx([1.0] * len(busy))
    assert history.peak == pytest.approx(steady)
    assert history.recent == pytest.approx(steady)
    assert 34 <= len(history.columns) <= 40, "a column per second, all alike within a batch"


def test_a_worker_that_stops_answering_has_a_rate_that_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: clock.now))
    stage = SlowWorkers([0.0], 1.0, 10)
    for clock.now in range(1, 6):
        stage.work_until(clock.now)
    assert stage.snapshot().rate == pytest.approx(10.0)
    clock.now = 103.0
    assert stage.snapshot().rate == pytest.approx(30 / 100), "all it can have done since second 3"


def test_a_channel_carries_only_its_own_types() -> None:
    ours, theirs = multiprocessing.Pipe()
    left = Channel(ours, sends=(Task,), receives=(Ready,))
    right = Channel(theirs, sends=(Ready, Done), receives=(Task,))
    left.send(Task(1, 1, "x"))
    assert right.receive() == Task(1, 1, "x")
    with pytest.raises(TypeError, match="Ready"):
        left.send(Ready(""))
    right.send(Done(1, None, 0.0))
    with pytest.raises(TypeError, match="Done"):
        left.receive()
    right.close()
    with pytest.raises(ChannelClosed):
        left.receive()


def test_a_message_that_stops_in_the_middle_is_the_end_of_the_channel() -> None:
    ours, theirs = multiprocessing.Pipe()
    channel = Channel(ours, sends=TO_WORKER, receives=FROM_WORKER, timeout_s=0.2)
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"P")
    assert channel.pending()
    with pytest.raises(ChannelClosed):
        channel.receive()
    ours, theirs = multiprocessing.Pipe()
    channel = Channel(ours, sends=TO_WORKER, receives=FROM_WORKER, timeout_s=0.2)
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"P")
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.receive()
    with pytest.raises(ChannelClosed):
        channel.send(Stop())
