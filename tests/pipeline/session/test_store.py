"""Files that are the end of their loader: each is named and counted, and costs nothing but itself."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.memory.arena import Arena
from pipeline.samples.library import SampleLibrary
from pipeline.samples.preprocess import Preprocessor
from pipeline.session.store import SampleStore
from pipeline.stages.base import StageFailure

SIZE = 32
NAMES = ("0.png", "1.png", "2.jpg", "3.png", "4.png", "5.png", "6.png", "7.png", "8.png", "9.png")
SLOW = 2


def slow_jpeg(side: int = 3000, scans: int = 20_000) -> bytes:
    """A progressive JPEG of under a megabyte that repeats its last scan: minutes of work."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * scans + data[end:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow")
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path / name)
    (path / NAMES[SLOW]).write_bytes(slow_jpeg())
    assert (path / NAMES[SLOW]).stat().st_size < 2**20
    return path


@contextmanager
def store(
    folder: Path, tmp_path: Path, *, image_timeout_s: float, loaders: int, slots: int | None = None
) -> Iterator[tuple[SampleStore, Arena]]:
    library = SampleLibrary.from_images(folder)
    failures: list[StageFailure] = []
    with Arena.create(slots or len(library), (3, SIZE, SIZE), tmp_path) as arena:
        made = SampleStore(
            library,
            arena,
            size=SIZE,
            resize=SIZE,
            loaders=loaders,
            timeout_s=30.0,
            image_timeout_s=image_timeout_s,
            on_failure=failures.append,
        )
        try:
            made.decode.start()
            yield made, arena
        finally:
            made.decode.stop()
            assert not any(psutil.pid_exists(pid) for pid in made.decode.pids)
    assert not failures


def assert_the_others_are_there(made: SampleStore, arena: Arena, folder: Path) -> None:
    out = np.empty((3, SIZE, SIZE), dtype=np.int8)
    for number, name in enumerate(NAMES):
        if number != SLOW:
            Preprocessor(size=SIZE, resize=SIZE).decode_into(folder / name, out)
            np.testing.assert_array_equal(arena.sample(made.slots_of(np.array([number]))[0]), out)


def test_a_file_that_takes_too_long_is_bad_and_the_others_of_its_task_are_not(folder: Path, tmp_path: Path) -> None:
    with store(folder, tmp_path, image_timeout_s=1.5, loaders=2) as (made, arena):
        bad = made.check()
        assert [(b.number, b.path.name) for b in bad] == [(SLOW, NAMES[SLOW])]
        assert bad[0].why == "its loader took longer than 1.5 s (--image-timeout)"
        assert_the_others_are_there(made, arena, folder)
        assert (made.snapshot().failed, made.decode.replaced) == (1, 1)
        with pytest.raises(ImageError, match="longer than"):
            made.load(np.array([1, SLOW]))


def test_a_file_whose_loaders_die_is_bad_with_the_signal(folder: Path, tmp_path: Path) -> None:
    with store(folder, tmp_path, image_timeout_s=60.0, loaders=1) as (made, arena):
        over = threading.Event()

        def kill_whoever_is_at_it() -> None:
            last, since = None, time.monotonic()
            while not over.wait(0.02):
                place = made.decode._children[0].place
                at = None if place is None else place.read()
                if at is None or at != last:
                    last, since = at, time.monotonic()
                elif time.monotonic() - since > 1.5:  # no other file takes this long
                    os.kill(made.decode.pids[0], signal.SIGKILL)
                    last = None

        killer = threading.Thread(target=kill_whoever_is_at_it)
        killer.start()
        try:
            bad = made.check()
        finally:
            over.set()
            killer.join()
        assert [b.number for b in bad] == [SLOW]
        assert bad[0].why == "its loader was killed by SIGKILL; the system may have run out of memory"
        assert made.decode.replaced == 2
        assert_the_others_are_there(made, arena, folder)


def test_a_bad_file_keeps_no_slot(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("0.png", "2.png", "3.png"):
        Image.new("RGB", (SIZE, SIZE), (10, 20, 30)).save(folder / name)
    (folder / "1.png").write_bytes(b"no image")
    with store(folder, tmp_path, image_timeout_s=60.0, loaders=1, slots=3) as (made, _):
        bad = made.check()
        assert [b.number for b in bad] == [1]
        assert made.drop(bad).tolist() == [0, 2, 3]
        checked = made.snapshot().done
        made.load(np.array([1, 2]))
        made.unload(np.array([1, 2]))
        # There is room for all three that are good: the slot of the bad one was free, and nothing had to go for it.
        made.load(np.array([0, 1, 2]))
        assert len(set(made.slots_of(np.array([0, 1, 2])).tolist())) == 3
        assert made.snapshot().done - checked == 1
