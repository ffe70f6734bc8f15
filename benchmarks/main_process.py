"""What a source costs the main process of `pipeline.classify`, by thread, and what a file costs a loader. No GPU.

    python -m benchmarks.main_process [--images FOLDER] [--sources 200000] [--loaders 2]

- list, folder, tar: the command's own way from the sources to a Parquet table (listing, scheduling, messages, answers,
  rows), beside processes that do nothing: loaders and an engine that answer at once, or, with --loader-us and
  --engine-us, after so many microseconds of sleep per file. CPU time of each thread over the sources. Threads share one
  interpreter: what they take together bounds the run, at 1e6 over it sources/s.
- loader: a loader's own CPU time for a file of --images in the page cache, left in its slot for the GPU to decode.
- npy: the same for a prepared tensor, which is read to where the engine takes it from.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil

from benchmarks.sections import add_sections
from int4core.options import NumpyOptions
from pipeline.classify.intake import Intake
from pipeline.classify.listing import Listing
from pipeline.classify.writing import ROWS_WAIT_S, Writing
from pipeline.defaults import DEMO_IMAGES
from pipeline.device.scheduler import Sizes
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.samples.library import IMAGE_SUFFIXES
from pipeline.samples.sources import Paths
from pipeline.session import batches, loading
from pipeline.session.answers import Answers
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from pipeline.sinks.answers import rows_of
from pipeline.sinks.opening import open_sink
from pipeline.stages.channels import Rates, Task
from pipeline.stages.load import BY_GPU, FILES_PER_JOB, Loader, LoadResult, LoadWork, Preparation
from pipeline.stages.place import Place
from pipeline.stages.process import ProcessStage
from pipeline.stages.spec import EngineSpec
from pipeline.stages.worker import serve_items
from pipeline.telemetry.trace import Untraced

SECTIONS = ("list", "folder", "tar", "loader", "npy")
TOP = 5
# What sources say of their classes is looked for, as the command does unasked.
CLASSES = 1000
BATCH = 1024
IN_FLIGHT = 4
FILES_PER_FOLDER = 5000
LOOK_S = 0.02
ROOM = 512 << 10
TENSORS = 200


class Idle:
    """What every worker has."""

    tracer = Untraced()

    def note(self) -> str:
        return "does nothing"

    def notices(self) -> tuple[str, ...]:
        return ()

    def rates(self) -> Rates:
        return Rates()

    def close(self) -> None: ...


class IdleLoader(Idle):
    """Has every file left in its slot."""

    def __init__(self, us: float, number: int) -> None:
        self._seconds = us / 1e6

    def work(self, task: Task[LoadWork], begin: Callable[[int], None]) -> LoadResult:
        time.sleep(task.samples * self._seconds)
        return LoadResult((), ((BY_GPU, task.samples),))


class IdleEngine(Idle):
    """Answers every sample with the same classes."""

    def __init__(self, us: float, spec: EngineSpec, number: int) -> None:
        self._seconds = us / 1e6
        self._exchange = Exchange.attach(spec.exchange)

    def work(self, task: Task[int]) -> None:
        time.sleep(task.samples * self._seconds)
        for place in self._exchange.answers(task.body, task.samples):
            place[:] = 1


def idle_loaders(
    us: float,
    arena: Any,
    preparation: Any,
    *,
    loaders: int,
    image_timeout_s: Any,
    cores: Any,
    traced: bool,
    **options: Any,
) -> ProcessStage[LoadWork, LoadResult]:
    return ProcessStage("decode", partial(IdleLoader, us), workers=loaders, serve=serve_items, **options)


def idle_engine(us: float, spec: EngineSpec, **options: Any) -> ProcessStage[int, None]:
    capacity = (spec.exchange.records + 1) * spec.batch_size
    make = partial(IdleEngine, us, spec)
    return ProcessStage("infer", make, workers=spec.engines, capacity=capacity, depth=IN_FLIGHT + 1, **options)


class Threads:
    """The CPU time of this process's threads, from `begin` to the end of `with`: microseconds by name."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._names: dict[int, str] = {}
        self._last: dict[int, float] = {}
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher")

    def __enter__(self) -> Threads:
        self._watcher.start()
        return self

    def begin(self) -> None:
        self._look()
        self._before = dict(self._last)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def us(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, seconds in self._last.items():
            name = self._names.get(number, "others")
            if name != self._watcher.name:
                found[name] = found.get(name, 0.0) + 1e6 * (seconds - self._before.get(number, 0.0))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _watch(self) -> None:
        # A thread that has ended is not counted any more: what was seen of it last is what it has taken.
        while not self._over.wait(LOOK_S):
            self._look()
        self._look()

    def _look(self) -> None:
        self._names |= {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id}
        self._last |= {thread.id: thread.user_time + thread.system_time for thread in self._process.threads()}


def main_process(source: str, folder: Path, options: argparse.Namespace) -> None:
    """Classify `source` with nobody at work, and print what it took."""
    spec = SessionSpec(
        model=folder,
        backend="cuda",
        backend_options=NumpyOptions(),
        sizes=Sizes.full(BATCH),
        input_shape=(3, 8, 8),
        preparation=Preparation("images", 8, 8, decode="gpu"),
        loaders=options.loaders,
        inflight=IN_FLIGHT,
        top=TOP,
        room=1 << 10,
    )
    with (
        Threads() as threads,
        open_sink(f"{folder}/answers.parquet", identity={"model": "none"}) as sink,
        Intake(Listing((source,), labels=True), done=sink.done, labels_below=CLASSES) as intake,
        mock.patch.object(loading, "load_stage", partial(idle_loaders, options.loader_us)),
        mock.patch.object(batches, "infer_stage", partial(idle_engine, options.engine_us)),
        Session(spec) as session,
    ):
        session.start()
        threads.begin()

        def write(answers: Answers) -> None:
            sink.write(rows_of(answers)) if len(answers) else sink.tick()

        began_s, count = time.perf_counter(), 0
        intake.count(print)
        with Writing(write, TOP) as writing:
            for answers in session.classify_in_batches(intake.sources(), wait_s=ROWS_WAIT_S):
                count += len(answers)
                writing.put(answers)
        seconds = time.perf_counter() - began_s
    taken = {name: us / count for name, us in threads.us().items()}
    together = sum(taken.values())
    print(f"\n{source}: {count:,} sources in {seconds:.1f} s, {count / seconds:,.0f} sources/s")
    for name, us in taken.items():
        if us >= 0.05:
            print(f"  {name:20}{us:6.2f} us of CPU per source")
    # The kernel counts in hundredths of a second: of few sources, it may have seen none.
    most = f"{1e6 / together:,.0f} sources/s at most" if together else "too few sources"
    print(f"  {'together':20}{together:6.2f}: {most}")


def listed(folder: Path, count: int) -> str:
    path = folder / "list.txt"
    path.write_text("".join(f"/data/imagenet/val/n{n % 1000:08}/ILSVRC2012_val_{n:08}.JPEG\n" for n in range(count)))
    return f"@{path}"


def filled(folder: Path, count: int) -> str:
    root = folder / "images"
    for number in range(count):
        below = root / f"n{number // FILES_PER_FOLDER:08}"
        if not number % FILES_PER_FOLDER:
            below.mkdir(parents=True)
        (below / f"ILSVRC2012_val_{number:08}.JPEG").touch()
    return str(root)


def packed(folder: Path, count: int, members: int, size: int) -> str:
    """Shards of `members` images of `size` bytes, which are holes: the headers alone take memory."""
    for first in range(0, count, members):
        with open(folder / f"{first:08}.tar", "wb") as file:
            for number in range(first, min(first + members, count)):
                info = tarfile.TarInfo(f"ILSVRC2012_val_{number:08}.JPEG")
                info.size = size
                file.write(info.tobuf())
                file.seek(-(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, io.SEEK_CUR)
            file.write(bytes(2 * tarfile.BLOCKSIZE))
    return f"{folder}/*.tar"


def images_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise SystemExit(f"{folder}: no image in it")
    return found


def tensors_in(folder: Path) -> list[Path]:
    """Prepared tensors; what is in them costs nothing."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:04}.npy" for number in range(TENSORS)]
    for path in paths:
        np.save(path, rng.integers(-128, 128, (3, 224, 224), dtype=np.int8))
    return paths


def loader(found: Sequence[Path], preparation: Preparation, count: int) -> None:
    """Print what a file takes a loader: in slots that it fills for the first time, and later."""
    size = sum(path.stat().st_size for path in found) / len(found)
    # Some as many as a session has: files that lie in caches would come sooner.
    place, slots = Place(get_context("spawn")), min(32, max(8, count // FILES_PER_JOB)) * FILES_PER_JOB
    with Arena.create(slots, (3, 224, 224), room=ROOM) as arena:
        arena.memory.fill(0)  # the memory is there, as it is once a GPU has mapped it
        made = Loader(arena.spec, preparation)
        paths = cycle(map(str, found))
        ways: Counter[str] = Counter()
        jobs = iter(range(1 << 30))

        def us_of(files: int) -> float:
            began_s = time.process_time()
            done = 0
            while done < files:
                job = next(jobs)
                some = Paths(list(islice(paths, FILES_PER_JOB)))
                at = np.arange(FILES_PER_JOB, dtype=np.int32) + job * FILES_PER_JOB % slots
                ways.update(
                    dict(made.work(Task(job, FILES_PER_JOB, LoadWork(some, at)), partial(place.enter, job)).ways)
                )
                done += FILES_PER_JOB
            return 1e6 * (time.process_time() - began_s) / done

        try:
            for path in found:
                path.read_bytes()  # into the page cache
            first_us = us_of(slots)
            ways.clear()
            us = us_of(count)
        finally:
            made.close()
    said = ", ".join([preparation.kind, *(f"{way} {files:,}" for way, files in ways.items())])
    print(
        f"\na loader: {us:.1f} us of CPU per file, {size / 1e3:.0f} kB on average ({said}): {1e6 / us:,.0f} files/s; "
        f"{first_us:.1f} us in slots that it fills for the first time"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.main_process", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=DEMO_IMAGES, help="of `loader` (default: %(default)s)")
    parser.add_argument("--sources", type=int, default=200_000, help="(default: %(default)s)")
    parser.add_argument("--loaders", type=int, default=2, help="processes that do nothing (default: %(default)s)")
    parser.add_argument("--loader-us", type=float, default=0.0, help="of sleep per file (default: %(default)g)")
    parser.add_argument("--engine-us", type=float, default=0.0, help="of sleep per sample (default: %(default)g)")
    parser.add_argument("--members", type=int, default=20_000, help="images of a shard (default: %(default)s)")
    parser.add_argument("--member-bytes", type=int, default=110_000, help="and their size (default: %(default)s)")
    parser.add_argument("--files", type=int, default=8192, help="of `loader` and `npy` (default: %(default)s)")
    add_sections(parser, SECTIONS)
    options = parser.parse_args(argv)
    wanted = options.sections
    shards = partial(packed, members=options.members, size=options.member_bytes)
    kinds: dict[str, Callable[[Path, int], str]] = {"list": listed, "folder": filled, "tar": shards}
    for name, make in kinds.items():
        if name in wanted:
            with tempfile.TemporaryDirectory() as folder:
                main_process(make(Path(folder), options.sources), Path(folder), options)
    if "loader" in wanted:
        loader(images_of(options.images), Preparation("images", 224, 256, decode="gpu"), options.files)
    if "npy" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            loader(tensors_in(Path(folder)), Preparation("tensors", 224, None), options.files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
