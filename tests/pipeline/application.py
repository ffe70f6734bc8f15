"""The application as a user starts it, for tests: runs to the end, and long runs that are caught in the middle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.memory.arena import segment_folder
from tests.paths import ROOT

LOADERS = 2

CPU = ("--gpu", "cpu", "--cpu-backend", "numpy")
"""The CPU as any machine has it: with PyTorch installed, each engine process would import it, which takes seconds."""

# How long a test waits for a line that a run is to print.
PATIENCE_S = 120.0


def command(*options: object, gpu: str = "cpu") -> list[str]:
    computed = CPU if gpu == "cpu" else ("--gpu", gpu)
    return [sys.executable, "-m", "pipeline.offline", *computed, "--loaders", str(LOADERS), *map(str, options)]


def offline(*options: object, gpu: str = "cpu", **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options, gpu=gpu), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False, **kwargs
    )


def predictions(output_dir: Path) -> dict[int, int]:
    """What LoadGen logged: sample index -> class."""
    records = json.loads((output_dir / "mlperf_log_accuracy.json").read_text())
    return {r["qsl_idx"]: int.from_bytes(bytes.fromhex(r["data"]), "little", signed=True) for r in records}


def labels_of(folder: Path) -> list[int]:
    return [int(line.split()[1]) for line in (folder / "map.txt").read_text().splitlines()]


class LongRun:
    """A performance run that would take minutes, caught in the middle of its timed part."""

    def __init__(self, model: Path, images: Path, out: Path, *options: object, gpu: str = "cpu") -> None:
        self.process = subprocess.Popen(
            command(
                "--model", model, "--images", images, "--output-dir", out, "--no-dashboard",
                "--lgts_min_duration_ms", 60000, *options, gpu=gpu,
            ),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.children: list[psutil.Process] = []
        self.output = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.output += line
                if match := re.search(pattern, line):
                    self.children = psutil.Process(self.process.pid).children(recursive=True)
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

    def finish(self) -> int:
        self.output += self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and any(c.is_running() for c in self.children):
            time.sleep(0.05)
        assert not [c for c in self.children if c.is_running()], "processes were left behind"
        assert not list(segment_folder().glob(f"int4-resnet50-{self.process.pid}-*"))

    def end(self) -> None:
        """Whatever has happened, nothing goes on."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for child in self.children:
            if child.is_running():
                child.kill()
