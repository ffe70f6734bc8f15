from __future__ import annotations

import threading
import time

from pipeline.session.timer import Timer
from pipeline.stages.base import StageFailure
from tests.pipeline.conftest import PATIENCE_S


def test_it_wakes_at_the_earliest_time_asked_for() -> None:
    woken, failures = threading.Event(), list[StageFailure]()
    timer = Timer(woken.set, failures.append)
    timer.start()
    began = time.monotonic()
    timer.wake_in(600.0)
    timer.wake_in(0.1)
    timer.wake_in(600.0)
    assert woken.wait(PATIENCE_S)
    assert time.monotonic() - began > 0.09
    timer.stop()
    timer.stop()
    assert not failures


def test_what_it_wakes_can_fail_and_that_is_told() -> None:
    def fail() -> None:
        raise ValueError("nothing to send")

    told = threading.Event()
    failures: list[StageFailure] = []

    def note(failure: StageFailure) -> None:
        failures.append(failure)
        told.set()

    timer = Timer(fail, note)
    timer.start()
    timer.wake_in(0.0)
    assert told.wait(PATIENCE_S)
    timer.stop()
    assert "batch-timer" in str(failures[0])
    assert "nothing to send" in str(failures[0])
    assert "ValueError" in failures[0].traceback
