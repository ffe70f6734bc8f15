"""What of a process's CPU time is its Python's."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.session import progress as progress_module
from pipeline.session.progress import Progress
from pipeline.telemetry.interpreter import beside_python, python_s

BURNED_S = 0.1


def burn() -> None:
    until = time.thread_time() + BURNED_S
    while time.thread_time() < until:
        pass


def test_what_runs_beside_python_is_left_out() -> None:
    def work() -> None:
        burn()
        with beside_python():
            burn()
            burn()

    before_s, all_before_s = python_s(), time.process_time()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    python, everything = python_s() - before_s, time.process_time() - all_before_s
    assert everything >= 3 * BURNED_S
    assert BURNED_S <= python <= everything - 2 * BURNED_S + 1e-3


def test_it_is_left_out_though_it_fails() -> None:
    def fail() -> None:
        burn()
        raise OSError("full")

    before_s, all_before_s = python_s(), time.process_time()
    with pytest.raises(OSError, match="full"), beside_python():
        fail()
    assert python_s() - before_s <= time.process_time() - all_before_s - BURNED_S + 1e-3


def test_what_the_main_process_could_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, float] = {"wall": 100.0, "python": 7.0}
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now["wall"]))
    monkeypatch.setattr(progress_module, "python_s", lambda: now["python"])
    session: Any = None
    progress = Progress(session)
    assert progress.main_rate is None
    progress.enter("running")
    now.update(wall=102.0, python=7.5)
    progress.add(1000)
    now.update(wall=110.0, python=15.0)  # what comes after the last answer does not count
    assert (progress.rate, progress.main_rate) == (500.0, 2000.0)
    now.update(wall=103.0, python=12.0)  # several threads in the system at a time
    progress.add(500)
    assert progress.rate == progress.main_rate == 500.0
