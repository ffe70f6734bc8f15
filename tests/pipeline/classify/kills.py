"""The command with its main process, a loader or its engine killed at random moments, and what must be left of it.

`python -m tests.pipeline.classify.kills --kills 60` does it as often; the tests do a few.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from int4core.random_model import random_model
from pipeline.classify import command as command_module
from pipeline.classify import writing as writing_module
from pipeline.classify.__main__ import main as classify
from pipeline.memory.segment import segment_folder
from pipeline.sinks.opening import open_sink
from tests.paths import ROOT
from tests.pipeline.application import CPU

SOURCES = 3000
DIFFERENT = 40
BAD = 3
VICTIMS = ("main", "loader", "engine")
# How long children of a killed process may take to find out.
ORPHANS_S = 120.0
RUN_S = 240.0


class Site:
    """Images, bad ones among them, and a small model in `folder`; the rows that a run left alone makes of them.

    Attributes:
        whole_s: how long that run took, a measure of where in a run another moment is.
    """

    def __init__(self, folder: Path, sources: int = SOURCES) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.images = folder / "images"
        random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3).save(self.model)
        self.images.mkdir()
        rng = np.random.default_rng(5)
        for number in range(sources):
            path = self.images / f"{number:04}.jpg"
            if number < DIFFERENT:
                small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
                small.resize((300, 260), Image.Resampling.BICUBIC).save(path)
            else:
                os.link(self.images / f"{number % DIFFERENT:04}.jpg", path)
        for number in range(BAD):
            (self.images / f"bad{number}.jpg").write_bytes(b"not an image")
        began = time.monotonic()
        self.expected = self.rows(self.finish("whole.jsonl"))
        self.whole_s = time.monotonic() - began
        assert len(self.expected) == sources + BAD

    def arguments(self, out: str) -> list[str]:
        return [
            str(self.images), "--out", str(self.folder / out) + "/" * out.endswith("/"), "--model", str(self.model),
            *CPU, "--loaders", "2", "-b", "4", "--no-dashboard",
        ]  # fmt: skip

    def start(self, out: str) -> Run:
        return Run(self.arguments(out))

    def finish(self, out: str) -> Path:
        """Run the command to its end, with nothing in its way."""
        run = self.start(out)
        status = run.wait(RUN_S)
        assert status == 0, run.output()
        run.check_nothing_left()
        return self.folder / out

    def check(self, out: str) -> None:
        """Every key once, with the answer of a run that nobody kills, and nothing half done beside the output."""
        found = self.rows(self.folder / out)
        assert found == self.expected
        left = {p.name for p in self.folder.rglob("*") if ".tmp" in p.name or p.name.endswith((".lock", ".parts"))}
        assert not left, left

    def remove(self, out: str) -> None:
        for path in self.folder.glob(f"{out.rstrip('/')}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @staticmethod
    def rows(path: Path) -> dict[str, tuple[Any, ...]]:
        """The rows of an output by their keys. Raises AssertionError for a key that is there twice."""
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row["score"] = None if row["score"] is None else float(np.float32(row["score"]))
        else:
            rows = pq.read_table(path).to_pylist()
        keyed = {os.path.basename(row["key"]): (row["class_id"], row["score"], row["error"]) for row in rows}
        assert len(keyed) == len(rows), [key for key, n in Counter(r["key"] for r in rows).items() if n > 1]
        return keyed


class Run:
    """The command in a process and a session of its own, small parts cut often."""

    def __init__(self, arguments: Sequence[str]) -> None:
        # Written and read through descriptors of their own: one that both had would be moved by reading.
        self._said = tempfile.NamedTemporaryFile("r")  # noqa: SIM115  # closed with this object
        with open(self._said.name, "ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.pipeline.classify.kills", "--run", *arguments],
                cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def output(self) -> str:
        self._said.seek(0)
        return self._said.read()

    def wait(self, seconds: float) -> int | None:
        """The exit status, None when there is none in that time."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def victim(self, kind: str, rng: random.Random) -> int | None:
        """The process id of one of a kind, once the run has said it."""
        if kind == "main":
            return self.pid
        stage = {"loader": "decode", "engine": "infer"}[kind]
        said = re.search(rf"stage {stage} is up: .*pids ([\d, ]+)\n", self.output())
        return None if said is None else int(rng.choice(said[1].split(",")))

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def check_nothing_left(self) -> None:
        """No process of the run's session, which outlives its first process."""
        deadline = time.monotonic() + ORPHANS_S
        while left := self._session():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def segments(self) -> list[Path]:
        return list(segment_folder().glob(f"int4-resnet50-{self.pid}-*"))

    def _session(self) -> list[psutil.Process]:
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return left


def kill_and_go_on(site: Site, out: str, kills: int, seed: int) -> Counter[str]:
    """Kill a process of a run into `out` `kills` times, each followed by the same command.

    Whenever the output is done in between, all is checked and it begins anew. What was killed, counted.
    """
    rng = random.Random(seed)
    hit: Counter[str] = Counter()
    killed_main: list[Run] = []
    while hit.total() < kills:
        kind = VICTIMS[hit.total() % len(VICTIMS)]
        run = site.start(out)
        try:
            status = _end_one(run, kind, site.whole_s, rng, hit)
        finally:
            run.kill(run.pid)
            run.wait(RUN_S)
        run.check_nothing_left()
        if status == -signal.SIGKILL:
            killed_main.append(run)
        elif status == 0:
            assert not run.segments()
            site.check(out)
            site.remove(out)
        else:
            # The engine's end is the run's.
            assert status == 1, (status, run.output())
            assert "SIGKILL" in run.output(), run.output()
            assert not run.segments()
    site.finish(out)
    site.check(out)
    site.remove(out)
    for run in killed_main:
        assert not run.segments(), "a later run sweeps what a killed one left"
    return hit


def _end_one(run: Run, kind: str, whole_s: float, rng: random.Random, hit: Counter[str]) -> int | None:
    """Kill one process of the run at some moment, and return how the run ended."""
    while (victim := run.victim(kind, rng)) is None:
        if (status := run.wait(0.02)) is not None:
            return status
    # Workers are there well past the half of a run, and are to be killed before its end.
    if (status := run.wait(rng.uniform(0, whole_s if kind == "main" else whole_s / 8))) is not None:
        return status
    run.kill(victim)
    hit[kind] += 1
    status = run.wait(RUN_S)
    assert status is not None, f"still there {RUN_S:g} s after its {kind} was killed:\n{run.output()}"
    return status


def main() -> int:
    if sys.argv[1:2] == ["--run"]:
        command_module.open_sink = partial(open_sink, rows_per_part=50, seconds_per_part=0.5)
        writing_module.ROWS_AT_A_TIME = 25
        return classify(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        for number, out in enumerate(("a.parquet", "a.jsonl", "parts/")):
            hit = kill_and_go_on(site, out, args.kills // 3, args.seed + number)
            killed = ", ".join(f"{count} {kind}" for kind, count in hit.items())
            print(f"{out}: {hit.total()} kills ({killed}), every key once, equal rows", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
