"""`pipeline.classify` beside the loop that people write (`benchmarks.plain_loop`), and what it promises of itself.

`python -m benchmarks.classify`, on a machine that does nothing else: the same files, read once before. The loop takes
torch and torchvision (extra `train`); without them, or with `--sections memory,first`, it is left out.

    compared    images/s, CPU seconds per image, memory of all processes: the command, the loop
    busy        the share of the time, from the first image on, that the engine is at work (CPU backend)
    memory      of all processes, for a number of images and for ten times as many (a tiny model)
    first       seconds from the start to the first row, with a thousand keys and with a million (a tiny model)

Memory is the proportional set size (PSS): what several processes share counts once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.sections import add_sections
from int4core.cores import usable_cores
from int4core.random_model import random_model
from pipeline.defaults import DEMO_IMAGES, default_model
from pipeline.machine.cpu import CPU_BACKENDS
from pipeline.machine.hardware import default_loaders
from pipeline.samples.library import IMAGE_SUFFIXES

SECTIONS = ("compared", "busy", "memory", "first")
WATCH_S = 0.25
# Keys of one folder in the section `first`; more are that many folders of links to it.
FOLDER_KEYS = 1000
TINY_BATCH = 64


@dataclass(frozen=True)
class Cost:
    """A command's run: seconds, CPU seconds and peak PSS in bytes, all its processes together; and what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    said: str


def cost_of(command: Sequence[object], environment: dict[str, str] | None = None) -> Cost:
    """Run `command` to its end. Raises SystemExit with what it said when it fails."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), stdout=said, stderr=subprocess.STDOUT, env=os.environ | (environment or {})
        )
        with _Memory(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{text}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, memory.peak_bytes, text)


class _Memory:
    """Looks at a process and all below it until it is left."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_S):
            with suppress(psutil.Error):
                self.peak_bytes = max(self.peak_bytes, sum(_pss(p) for p in self._all()))

    def _all(self) -> Iterator[psutil.Process]:
        yield self._root
        yield from self._root.children(recursive=True)


def _pss(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0  # it has ended


class Site:
    """Images under as many names as are asked for, and a tiny model, in a temporary folder."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder = folder
        self._images = sorted(p.resolve() for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self._images:
            raise SystemExit(f"{images}: no image in it")
        for image in self._images:
            image.read_bytes()  # into the page cache
        self.tiny = folder / "model"
        random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3).save(self.tiny)

    def names(self, count: int) -> Path:
        """A folder with `count` names of images."""
        folder = self.folder / f"{count}"
        if not folder.exists():
            folder.mkdir()
            for number, image in enumerate(islice(cycle(self._images), count)):
                (folder / f"{number:08}{image.suffix}").symlink_to(image)
        return folder

    def keys(self, count: int) -> Path:
        """A folder with `count` keys below it, a multiple of FOLDER_KEYS."""
        folder = self.folder / f"keys-{count}"
        folder.mkdir()
        for number in range(count // FOLDER_KEYS):
            (folder / f"{number:04}").symlink_to(self.names(FOLDER_KEYS))
        return folder

    def listed(self, folder: Path) -> Path:
        """A list of what is in a folder and in the folders in it."""
        path = folder.with_suffix(".txt")
        with path.open("w") as file:
            for below, folders, names in os.walk(folder, followlinks=True):
                folders.sort()
                file.writelines(f"{below}/{name}\n" for name in sorted(names))
        return path


def classify(*arguments: object) -> list[object]:
    return [sys.executable, "-m", "pipeline.classify", *arguments, "--no-dashboard"]


def compared(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Prints the command and the loop; returns the command's summary."""
    source, summary = site.names(options.count), site.folder / "summary.json"
    given = ["--model", options.model, "--gpu", options.gpu, "--loaders", options.loaders, "--summary", summary]
    given += ["--cpu-backend", options.cpu_backend]
    given += [] if options.batch is None else ["-b", options.batch]
    print(f"{'':28}{'images/s':>10}{'with start':>12}{'CPU ms/image':>14}{'peak MiB':>10}")
    ours = cost_of(classify(source, "--out", site.folder / "ours.csv", *given))
    told: dict[str, Any] = json.loads(summary.read_text())
    rate = told["throughput"]["samples_per_second_mean"]
    _line("pipeline.classify", rate, options.count, ours)
    missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"benchmarks.plain_loop is left out: no {' and no '.join(missing)} (pip install -e '.[train]')")
        return told
    loop = [sys.executable, "-m", "benchmarks.plain_loop", site.listed(source), "--workers", options.loaders]
    loop += ["--out", site.folder / "plain.csv", *([] if options.batch is None else ["--batch", options.batch])]
    plain = cost_of(loop, {"CUDA_VISIBLE_DEVICES": ""} if options.gpu == "cpu" else None)
    timed = json.loads(plain.said.splitlines()[-1])
    _line("benchmarks.plain_loop", timed["images"] / timed["seconds"], options.count, plain)
    better = rate * timed["seconds"] / timed["images"], plain.wall_s / ours.wall_s
    less = plain.cpu_s / ours.cpu_s, plain.peak_bytes / ours.peak_bytes
    print(f"{'the command is better by':28}{better[0]:10.2f}{better[1]:12.2f}{less[0]:14.2f}{less[1]:10.2f}")
    return told


def _line(name: str, rate: float, count: int, cost: Cost) -> None:
    print(
        f"{name:28}{rate:10,.1f}{count / cost.wall_s:12,.1f}{1000 * cost.cpu_s / count:14,.1f}"
        f"{cost.peak_bytes / 2**20:10,.0f}"
    )


def busy(told: dict[str, Any]) -> None:
    rate, engine = told["throughput"]["samples_per_second_mean"], told["verdict"]["ceilings"].get("engine")
    print("\nthe verdict: " + told["verdict"]["sentences"][0])
    if engine is not None:
        print(f"the engine's rate while it is at work is {engine['samples_per_s']:,.1f}: at work for "
              f"{rate / engine['samples_per_s']:.1%} of the time")  # fmt: skip


def memory(site: Site, options: argparse.Namespace) -> None:
    print(f"\n{'images':>12}{'peak MiB':>10}{'images/s':>10}")
    for count in (options.few, 10 * options.few):
        cost = cost_of(classify(site.names(count), "--out", site.folder / f"{count}.csv", *_tiny(site, options)))
        print(f"{count:12,}{cost.peak_bytes / 2**20:10,.0f}{count / cost.wall_s:10,.0f}")


def first(site: Site, options: argparse.Namespace) -> None:
    print(f"\n{'keys':>12}{'first of a folder, s':>22}{'first of a list, s':>20}")
    for count in (FOLDER_KEYS, options.keys):
        folder = site.keys(count)
        sources = (folder, f"@{site.listed(folder)}")
        print(f"{count:12,}{_first_s(site, sources[0], options):22.2f}{_first_s(site, sources[1], options):20.2f}")


def _first_s(site: Site, source: object, options: argparse.Namespace) -> float:
    """Seconds to the first row, after which the run is ended."""
    began = time.perf_counter()
    run = classify(source, "--out", "-", *_tiny(site, options))
    process = subprocess.Popen(list(map(str, run)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{source}: no row came")
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
    return seconds


def _tiny(site: Site, options: argparse.Namespace) -> list[object]:
    """The tiny model, on the CPU."""
    given: list[object] = ["--model", site.tiny, "-b", TINY_BATCH, "--gpu", "cpu", "--cpu-backend", options.cpu_backend]
    return [*given, "--loaders", options.loaders]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.classify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=DEMO_IMAGES, help="a folder of images (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, default=512, help="names of them that are classified (default: %(default)s)"
    )
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the one provided)")
    parser.add_argument("--gpu", default="auto", help="as of the command (default: %(default)s)")
    parser.add_argument(
        "--cpu-backend", choices=CPU_BACKENDS, default="auto", help="as of the command (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, help="of both (default: of each its own)")
    parser.add_argument("--loaders", type=int, default=default_loaders(), help="of both (default: by cores)")
    parser.add_argument("--few", type=int, default=2000, help="images of `memory`, and ten times as many")
    parser.add_argument("--keys", type=int, default=1_000_000, help="of `first`, a multiple of 1,000")
    add_sections(parser, SECTIONS)
    options = parser.parse_args(argv)
    wanted = options.sections
    options.model = options.model or default_model()
    print(f"{usable_cores()} cores, load average {os.getloadavg()[0]:.1f} before, {options.loaders} loaders")
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), options.images)
        if "compared" in wanted or "busy" in wanted:
            told = compared(site, options)
            if "busy" in wanted:
                busy(told)
        if "memory" in wanted:
            memory(site, options)
        if "first" in wanted:
            first(site, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
