"""The application as a user starts it, for tests: runs to the end, and long runs that are caught in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.memory.arena import segment_folder
from tests.paths import ROOT

LOADERS = 2

CPU = ("--gpu", "cpu", "--cpu-backend", "numpy")
"""The CPU as any machine has it: with PyTorch installed, each engine process would import it, which takes seconds."""

# How long a test waits for a line that a run is to print.
PATIENCE_S = 300.0


def command(*options: object, gpu: str = "cpu") -> list[str]:
    computed = CPU if gpu == "cpu" else ("--gpu", gpu)
    # What is set up beside much else may be silent for a while.
    given = [*computed, "--loaders", LOADERS, "--stage-timeout", PATIENCE_S, *options]
    return [sys.executable, "-m", "pipeline.offline", *map(str, given)]


def offline(*options: object, gpu: str = "cpu", **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options, gpu=gpu), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False, **kwargs
    )


def run_with(changes: str, module: str, *options: object) -> subprocess.CompletedProcess[str]:
    """The command `module` on the CPU, run to the end, in a process that executes `changes` first."""
    code = f"import sys\n{changes}\nfrom {module} import main\nsys.exit(main())"
    given = [*CPU, "--loaders", LOADERS, "--stage-timeout", PATIENCE_S, *options]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, given)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def lives(process: psutil.Process) -> bool:
    """Whether a process goes on: one that has ended stays in the table until somebody has taken note of it."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def predictions(output_dir: Path) -> dict[int, int]:
    """What LoadGen logged: sample index -> class."""
    records = json.loads((output_dir / "mlperf_log_accuracy.json").read_text())
    return {r["qsl_idx"]: int.from_bytes(bytes.fromhex(r["data"]), "little", signed=True) for r in records}


def labels_of(folder: Path) -> list[int]:
    return [int(line.split()[1]) for line in (folder / "map.txt").read_text().splitlines()]


class LongRun:
    """A performance run that would take minutes, caught in the middle of its timed part.

    It leads a process group, which all that it starts is in.
    """

    def __init__(
        self,
        model: Path,
        images: Path,
        out: Path,
        *options: object,
        gpu: str = "cpu",
        env: dict[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            command(
                "--model", model, "--images", images, "--output-dir", out, "--no-dashboard",
                "--lgts_min_duration_ms", 60000, *options, gpu=gpu,
            ),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=env,
        )  # fmt: skip
        self.output = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.output += line
                if match := re.search(pattern, line):
                    return match
        finally:
            watchdog.cancel()
        raise AssertionError(f"{pattern!r} never came:\n{self.output}")

    def wait_running(self) -> dict[str, list[int]]:
        """Worker pids by stage, once LoadGen's timed part is under way."""
        pids = {}
        for stage in ("decode", "infer"):
            pids[stage] = [int(p) for p in self.read_until(rf"{stage}.*pids? ([\d, ]+)")[1].split(",")]
        self.read_until(r"running.*img/s")
        return pids

    def wait_heeding(self) -> None:
        """Wait until signals end the run instead of the process. Before, they are Python's own business."""
        status = Path(f"/proc/{self.process.pid}/status")
        self.wait_until(lambda: int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> signal.SIGTERM - 1 & 1)

    def wait_child(self) -> None:
        """Wait until the run has started a process."""
        self.wait_until(lambda: len(self.group()) > 1)

    def wait_until(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not there():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def group(self) -> list[psutil.Process]:
        """What lives of the run and of all that it has started."""
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError):
                if os.getpgid(process.pid) == self.process.pid and lives(process):
                    found.append(process)
        return found

    def finish(self) -> int:
        self.output += self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode

    def wait_gone(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (left := self.group()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "processes were left behind"

    def assert_nothing_left(self) -> None:
        self.wait_gone()
        assert not list(segment_folder().glob(f"int4-resnet50-{self.process.pid}-*"))

    def end(self) -> None:
        """Whatever has happened, nothing goes on."""
        for process in self.group():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()
