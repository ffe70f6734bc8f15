"""Workers that are lost and replaced: what comes back to the owner, and what ends the stage all the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.lost import Lost, triage
from pipeline.stages.place import At, Place
from pipeline.stages.process import FRUITLESS_LOSSES, ProcessStage
from pipeline.stages.worker import serve_items
from tests.pipeline.conftest import PATIENCE_S, all_ended, wait_for
from tests.pipeline.judged import judged_clock
from tests.pipeline.stages.workers import Body, DiesTraced, Shouter


class Owner:
    """Gives out tasks and takes back those that were lost, as a store of samples does."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.bad: dict[str, str] = {}
        self.lost: list[Lost] = []
        self.failures: list[StageFailure] = []
        self.failed = threading.Event()
        self.stage: ProcessStage[Body, list[str]]
        self._tickets = 0

    def task(self, *words: str) -> Task[Body]:
        self._tickets += 1
        return Task(self._tickets, len(words), words)

    def result(self, _task: Task[Body], words: list[str]) -> None:
        self.done += words

    def back(self, task: Task[Body], lost: Lost) -> None:
        self.lost.append(lost)
        blame, again = triage(task.samples, lost)
        if blame is not None:
            self.bad[task.body[blame]] = lost.why
        for items in again:
            self.stage.put_back(self.task(*(task.body[i] for i in items)))

    def failure(self, failure: StageFailure) -> None:
        self.failures.append(failure)
        self.failed.set()


@contextmanager
def shouters(**changed: Any) -> Iterator[tuple[ProcessStage[Body, list[str]], Owner]]:
    owner = Owner()
    options: dict[str, Any] = {"workers": 1, "capacity": 16, "timeout_s": PATIENCE_S, "on_lost": owner.back} | changed
    maker = options.pop("make_worker", Shouter)
    owner.stage = ProcessStage(
        "shout", maker, on_result=owner.result, on_failure=owner.failure, serve=serve_items, **options
    )
    seen: set[int] = set()
    try:
        owner.stage.start()
        seen |= set(owner.stage.pids)
        yield owner.stage, owner
    finally:
        seen |= set(owner.stage.pids)
        owner.stage.stop()
        wait_for(lambda: all_ended(seen))


def place_of(stage: ProcessStage[Body, list[str]]) -> At | None:
    """Where the stage's only worker is."""
    place = stage._children[0].place
    assert place is not None
    return place.read()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_kills_its_worker_is_the_only_one_that_is_bad(workers: int) -> None:
    with shouters(workers=workers) as (stage, owner):
        before = stage.pids
        stage.submit(owner.task("a", "b", "kill", "c"))
        stage.submit(owner.task("d", "e"))
        stage.drain()
        assert sorted(owner.done) == ["A", "B", "C", "D", "E"]
        assert owner.bad == {"kill": "was killed by SIGKILL; the system may have run out of memory"}
        assert owner.lost[0].item == 2
        assert stage.replaced == 2, "once among others, once alone"
        assert stage.pids != before
        assert sum(stage.done_by_worker) == stage.snapshot().done == 5
        assert stage.snapshot().queued == 0
        assert not owner.failures


def test_an_item_that_overstays_is_bad_at_once_and_its_time_is_not_the_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = judged_clock(monkeypatch)
    with shouters(item_timeout_s=3.0) as (stage, owner):
        stage._timeout_s = 2.0  # shorter than the item's: it is about workers that are silent
        judged.let_pass(5.0, lambda: (place_of(stage) or (0, 0))[1] == 1)
        stage.submit(owner.task("a", "hang", "b"))
        stage.submit(owner.task("c"))
        stage.drain()
        assert sorted(owner.done) == ["A", "B", "C"]
        assert owner.bad == {"hang": "took longer than 3 s (--image-timeout)"}
        assert [(lost.item, lost.overstayed) for lost in owner.lost] == [(1, True), (None, False)]
        assert stage.replaced == 1


def test_an_item_that_was_there_when_its_worker_died_gets_another_chance(tmp_path: Path) -> None:
    word = str(tmp_path / "once")
    with shouters() as (stage, owner):
        stage.submit(owner.task("a", word, "b"))
        stage.drain()
        assert sorted(owner.done) == sorted(["A", word.upper(), "B"])
        assert not owner.bad
        assert stage.replaced == 1


def test_a_worker_that_hangs_between_items_is_replaced_and_nothing_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = f"~{tmp_path / 'once'}"
    judged = judged_clock(monkeypatch)
    with shouters(item_timeout_s=PATIENCE_S) as (stage, owner):
        stage._timeout_s = 3.0
        judged.let_pass(5.0, (tmp_path / "once").exists)
        stage.submit(owner.task(word, "b"))
        stage.drain()
        assert sorted(owner.done) == sorted([word.upper(), "B"])
        assert owner.lost == [Lost(None, "was silent on a task for 3 s")]


def test_workers_that_die_with_nothing_to_do_end_the_stage() -> None:
    with shouters() as (stage, owner):
        for _ in range(FRUITLESS_LOSSES):
            pid = stage.pids[0]
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: owner.failures or (stage.pids[0] != pid and stage.ready))
        assert owner.failed.wait(PATIENCE_S)
        assert f"{FRUITLESS_LOSSES} workers were lost" in str(owner.failures[0])
        assert "SIGKILL" in str(owner.failures[0])
        assert stage.replaced == FRUITLESS_LOSSES - 1
        with pytest.raises(StageFailure):
            stage.put_back(owner.task("a"))


def test_a_worker_that_dies_when_it_is_asked_for_its_trace_is_not_waited_for() -> None:
    with shouters(workers=2, make_worker=DiesTraced) as (stage, owner):
        survivor = stage.pids[1]
        assert [pid for pid, _, _, _ in stage.traces()] == [survivor]
        assert stage.replaced == 1
        assert not owner.failures


def test_an_exception_still_ends_the_stage_and_so_does_one_of_the_owner() -> None:
    with shouters() as (stage, owner):
        stage.submit(owner.task("raise"))
        with pytest.raises(StageFailure, match="no such word"):
            stage.drain()

    def refuse(_task: Task[Body], _lost: Lost) -> None:
        raise RuntimeError("I do not want it")

    with shouters(on_lost=refuse) as (stage, owner):
        stage.submit(owner.task("kill"))
        with pytest.raises(StageFailure, match="I do not want it"):
            stage.drain()


def test_what_is_put_back_goes_in_first_and_into_a_full_stage() -> None:
    with shouters(capacity=2, depth=1) as (stage, owner):
        with stage._changed:  # the worker's end is not looked at before the stage is full
            stage.submit(owner.task("kill"))
            stage.submit(owner.task("z"))
            assert not stage.try_submit(owner.task("no"))
        stage.drain()
        assert owner.bad.keys() == {"kill"}
        assert owner.done == ["Z"]
    with pytest.raises(ValueError, match="on_lost"), shouters(on_lost=None, item_timeout_s=1.0):
        pass


@given(st.lists(st.sampled_from(["good", "kills", "hangs", "kills once"]), min_size=1, max_size=24), st.data())
def test_triage_ends_with_every_item_done_or_to_blame(kinds: list[str], data: st.DataObject) -> None:
    kinds, blamed, done = list(kinds), set(), set()
    tasks = [tuple(range(len(kinds)))]
    losses = 0
    while tasks:
        items = tasks.pop(data.draw(st.integers(0, len(tasks) - 1)))
        at = next((i for i, item in enumerate(items) if kinds[item] != "good"), None)
        if data.draw(st.booleans()) and losses < 50:
            lost = Lost(None, "it had not begun")
        elif at is None:
            assert not done & set(items), "an item is done once"
            done |= set(items)
            continue
        else:
            lost = Lost(at, "died", kinds[items[at]] == "hangs")
            if kinds[items[at]] == "kills once":  # alone, it has had its chance
                kinds[items[at]] = "good" if len(items) > 1 else "kills"
        losses += 1
        blame, again = triage(len(items), lost)
        if blame is not None:
            assert len(items) == 1 or lost.overstayed
            blamed.add(items[blame])
        tasks += [tuple(items[i] for i in group) for group in again]
    assert blamed == {i for i, kind in enumerate(kinds) if kind in ("kills", "hangs")}
    assert done == set(range(len(kinds))) - blamed


def test_a_place_is_one_word() -> None:
    place = Place(multiprocessing.get_context("spawn"))
    assert place.read() is None
    place.enter(0, 0)
    assert place.read() == (0, 0)
    place.enter(10**12, 1_000_000)
    assert place.read() == (10**12, 1_000_000)
    with pytest.raises(ValueError, match="item"):
        place.enter(1, 1 << 20)
    place.leave()
    assert place.read() is None
