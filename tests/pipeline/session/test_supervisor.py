from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pipeline.session.supervisor import Interrupted, Supervisor


def test_a_job_that_ends_well() -> None:
    ran = []
    supervisor = Supervisor()
    supervisor.watch(lambda: ran.append(1))
    assert ran == [1]
    assert not supervisor.job_is_stuck


def test_what_the_job_raises_comes_out() -> None:
    def job() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        Supervisor().watch(job)


def test_a_failure_from_another_thread_ends_the_wait_and_the_first_counts() -> None:
    supervisor = Supervisor()
    release = threading.Event()

    def job() -> None:
        supervisor.fail(ValueError("first"))
        supervisor.fail(ValueError("second"))
        release.wait(30)

    with pytest.raises(ValueError, match="first"):
        supervisor.watch(job)
    assert supervisor.job_is_stuck
    release.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    supervisor = Supervisor()
    release = threading.Event()
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    before = signal.getsignal(number)
    with supervisor.signals(), pytest.raises(Interrupted, match=number.name):
        supervisor.watch(lambda: release.wait(30) and None)
    assert time.monotonic() - began < 3
    assert signal.getsignal(number) is before
    release.set()
