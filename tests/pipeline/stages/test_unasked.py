"""A process with a single task: what it gives, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial

import pytest

from pipeline.stages.base import StageFailure
from pipeline.stages.unasked import Unasked
from tests.pipeline.conftest import all_ended, wait_for
from tests.pipeline.stages.workers import Teller


@pytest.fixture(autouse=True)
def nothing_left(clean: None) -> None:
    """After each test."""


def telling(*words: str) -> Unasked:
    return Unasked("tell", partial(Teller, words), remedy="ask again")


def test_what_it_gives_comes_in_order_and_then_its_end() -> None:
    process = telling("a", "b")
    assert [process.take(), process.take()] == ["a", "b"]
    with pytest.raises(StageFailure, match=r"^stage tell: worker 0 .* ended with exit status 0; ask again$"):
        process.take()
    process.close()
    process.close()
    with pytest.raises(StageFailure, match="stopped"):
        process.take()


@pytest.mark.parametrize(
    ("word", "why"),
    [("raise", r"worker 0 .* failed: ValueError: raise$"), ("die", r"worker 0 .* was killed by SIGKILL.*; ask again$")],
)
def test_how_it_is_lost(word: str, why: str) -> None:
    process = telling("a", word)
    assert process.take() == "a"
    with pytest.raises(StageFailure, match=why):
        process.take()
    process.close()


def test_who_waits_is_notified_when_it_is_closed() -> None:
    """Group signals are the main process's to heed."""
    process = telling("a", "wait")
    process.take()
    os.kill(process.pid, signal.SIGTERM)
    failures: list[str] = []

    def wait() -> None:
        try:
            process.take()
        except StageFailure as failure:
            failures.append(str(failure))

    waiting = threading.Thread(target=wait)
    waiting.start()
    process.close()
    waiting.join()
    assert failures == ["stage tell: stopped"]


def test_it_may_be_closed_while_it_is_found_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    process = telling("die")
    ending, closing = process._child.ending, threading.Thread(target=process.close)

    def closed_meanwhile() -> str:
        closing.start()
        closing.join(0.5)  # where it may not yet, it waits for whoever takes
        return ending()

    monkeypatch.setattr(process._child, "ending", closed_meanwhile)
    with pytest.raises(StageFailure, match="was killed by SIGKILL"):
        process.take()
    closing.join()


def test_it_ends_with_the_main_process_though_it_has_nothing_to_send() -> None:
    """As when the main process is killed: nobody holds the other end of its pipe."""
    process = telling("a", "wait")
    process.take()
    process._child.channel.close()
    wait_for(lambda: all_ended([process.pid]))
    process._child.process.join()


def test_it_waits_until_what_it_gives_is_taken() -> None:
    process = telling(*("a" * 10_000 for _ in range(1000)))
    process.take()
    assert [len(process.take()) for _ in range(999)] == [10_000] * 999
    process.close()


def test_a_process_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("pipeline.stages.child.SpawnProcess.start", refuse)
    with pytest.raises(StageFailure, match="stage tell: worker 0 cannot be started: no more processes or threads"):
        telling("a")
