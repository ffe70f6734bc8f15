"""Futures of sources that are submitted one by one, and what their callbacks may do."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue

import pytest

from pipeline.session.answers import Answer
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.session.conftest import running


def test_a_future_has_the_error_of_its_source(session: Session) -> None:
    assert "no such file" in str(session.submit("nowhere.jpg").result(PATIENCE_S).error)


@pytest.mark.usefixtures("clean")
def test_callbacks_may_ask_for_more_than_there_is_room_for(spec: SessionSpec, paths: list[str], best: list) -> None:
    """Each of the first four asks for three more; there are four slots."""
    told: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
    with running(replace(spec, slots=4)) as session:

        def ask(number: int, more: int) -> None:
            future = session.submit(paths[number])

            def answered(of: Future[Answer]) -> None:
                told.put((number, of.result()))
                for after in range(more):
                    ask((number + after) % len(paths), 0)

            future.add_done_callback(answered)

        for number in range(4):
            ask(number, 3)
        answers = [told.get(timeout=PATIENCE_S) for _ in range(4 + 4 * 3)]
    assert all((answer.classes, answer.scores) == best[number] for number, answer in answers)


@pytest.mark.usefixtures("clean")
def test_a_callback_that_waits_holds_up_nobody_else(spec: SessionSpec, paths: list[str], best: list) -> None:
    with running(spec) as session:
        over = threading.Event()
        try:
            session.submit(paths[0]).add_done_callback(lambda _: over.wait(PATIENCE_S))
            answers = list(session.classify(paths))
            assert not over.is_set()
        finally:
            over.set()
    assert [(answer.classes, answer.scores) for answer in answers] == best


@pytest.mark.usefixtures("clean")
def test_a_callback_may_end_the_session(spec: SessionSpec, paths: list[str]) -> None:
    with running(spec) as session:
        closed = threading.Event()

        def close(_: Future[Answer]) -> None:
            session.close()
            closed.set()

        session.submit(paths[0]).add_done_callback(close)
        assert closed.wait(PATIENCE_S)
