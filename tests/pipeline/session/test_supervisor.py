from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.session.supervisor import Interrupted, Supervisor
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S, all_ended, wait_for


def test_a_job_that_ends_well() -> None:
    ran = []
    supervisor = Supervisor()
    supervisor.watch(lambda: ran.append(1))
    assert ran == [1]
    assert supervisor.watch(lambda: 7) == 7
    assert not supervisor.job_is_stuck


def test_what_the_job_raises_comes_out() -> None:
    def job() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        Supervisor().watch(job)


def test_a_job_that_has_raised_is_not_stuck_though_its_thread_still_ends() -> None:
    release = threading.Event()

    class Slow(Supervisor):
        def fail(self, error: BaseException) -> None:
            super().fail(error)
            release.wait(PATIENCE_S)

    def job() -> None:
        raise ValueError("boom")

    supervisor = Slow()
    with pytest.raises(ValueError, match="boom"):
        supervisor.watch(job)
    assert not supervisor.job_is_stuck
    release.set()


def test_a_failure_from_another_thread_ends_the_wait_and_the_first_counts() -> None:
    supervisor = Supervisor()
    release = threading.Event()

    def job() -> None:
        supervisor.fail(ValueError("first"))
        supervisor.fail(ValueError("second"))
        release.wait(PATIENCE_S)

    with pytest.raises(ValueError, match="first"):
        supervisor.watch(job)
    assert supervisor.job_is_stuck
    release.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    supervisor = Supervisor()
    release = threading.Event()
    before = signal.getsignal(number)

    def job() -> None:
        os.kill(os.getpid(), number)
        release.wait(PATIENCE_S)

    with supervisor.signals(), pytest.raises(Interrupted, match=number.name):
        supervisor.watch(job)
    assert supervisor.job_is_stuck, "it was not waited for"
    assert signal.getsignal(number) is before
    release.set()


def test_a_failure_between_two_jobs_ends_the_second() -> None:
    supervisor = Supervisor()
    supervisor.watch(lambda: None)
    supervisor.fail(ValueError("between"))
    with pytest.raises(ValueError, match="between"):
        supervisor.watch(lambda: time.sleep(0.01))


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with Supervisor().signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


STUCK = """
import subprocess, sys
from pipeline.memory.arena import Arena
from pipeline.session.abandon import abandon
from pipeline.session.supervisor import Supervisor

supervisor = Supervisor()
with supervisor.signals():
    supervisor.abandon = abandon
    arena = Arena.create(1, (3, 8, 8))
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, arena.spec.path, flush=True)
    open(sys.argv[1])
"""


def test_a_second_signal_ends_a_process_that_waits_and_leaves_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "fifo")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        pid, segment = process.stdout.readline().split()
        assert Path(segment).exists()
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 143
    assert said == "stopped at once by a second signal\n"
    assert not Path(segment).exists()
    wait_for(lambda: all_ended([int(pid)]))


def test_a_second_signal_is_said_below_the_live_view(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "fifo")], cwd=ROOT, stdout=subprocess.PIPE, stderr=slave
    )
    try:
        os.close(slave)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143
        assert os.read(master, 1000) == b"\x1b[?25h\r\nstopped at once by a second signal\r\n"
    finally:
        process.kill()
        os.close(master)
