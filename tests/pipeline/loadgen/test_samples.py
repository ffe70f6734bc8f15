"""Files that are the end of their loader: each is named and counted, and costs nothing but itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.loadgen.samples import BadFiles, Samples
from pipeline.memory.arena import Arena
from pipeline.samples.library import SampleLibrary
from pipeline.samples.preprocess import Preprocessor
from pipeline.samples.sources import Source
from pipeline.session.loading import Loading
from pipeline.stages.base import StageFailure
from pipeline.stages.load import Preparation
from pipeline.stages.process import ProcessStage
from pipeline.telemetry.metrics import StageSnapshot
from tests.pipeline.conftest import PATIENCE_S, wait_for
from tests.pipeline.slow_image import Hour, Killer, slow_jpeg

SIZE = 32
NAMES = ("0.png", "1.png", "2.jpg", "3.png", "4.png", "5.png", "6.png", "7.png", "8.png", "9.png")
SLOW = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow")
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path / name)
    (path / NAMES[SLOW]).write_bytes(slow_jpeg())
    assert (path / NAMES[SLOW]).stat().st_size < 2**20
    return path


class Store(Samples):
    """The samples of a library over loaders of their own."""

    loading: Loading
    ahead_may_go_on: threading.Event | None = None  # before what was decoded ahead arrives

    def _take(self, outcomes: Iterable[tuple[Source, tuple[int, ...] | None, str | None]]) -> None:
        if self.ahead_may_go_on and threading.current_thread() is self._ahead:
            assert self.ahead_may_go_on.wait(60)
        super()._take(outcomes)

    @property
    def stage(self) -> ProcessStage[Any, Any]:
        return self.loading.stage

    def snapshot(self) -> StageSnapshot:
        return self.stage.snapshot()


@contextmanager
def store(
    folder: Path, tmp_path: Path, *, loaders: int, slots: int | None = None, **options: Any
) -> Iterator[tuple[Store, Arena]]:
    library = SampleLibrary.from_images(folder)
    failures: list[StageFailure] = []
    with Arena.create(slots or len(library), (3, SIZE, SIZE), tmp_path) as arena:
        loading = Loading(
            arena,
            Preparation("images", SIZE, SIZE),
            loaders=loaders,
            timeout_s=600.0,
            image_timeout_s=600.0,
            on_prepared=lambda ready: None,
            on_failure=failures.append,
        )
        made = Store(loading, library, **options)
        made.loading = loading
        try:
            loading.stage.start()
            yield made, arena
        finally:
            made.stop()
            loading.stop()
            assert not any(psutil.pid_exists(pid) for pid in loading.stage.pids)
    assert not failures


def assert_the_others_are_there(made: Store, arena: Arena, folder: Path) -> None:
    out = np.empty((3, SIZE, SIZE), dtype=np.int8)
    for number, name in enumerate(NAMES):
        if number != SLOW:
            Preprocessor(size=SIZE, resize=SIZE).decode_into(folder / name, out)
            np.testing.assert_array_equal(arena.sample(made.slots_of(np.array([number]))[0]), out)


def test_a_file_that_takes_too_long_is_bad_and_the_others_of_its_task_are_not(folder: Path, tmp_path: Path) -> None:
    with store(folder, tmp_path, loaders=2) as (made, arena):
        with Hour(folder / NAMES[SLOW], made.stage):
            bad = made.check()
        assert [(b.number, b.path.name) for b in bad] == [(SLOW, NAMES[SLOW])]
        assert bad[0].why == "its loader took longer than 600 s (--image-timeout)"
        assert_the_others_are_there(made, arena, folder)
        assert (made.snapshot().failed, made.stage.replaced) == (1, 1)
        with pytest.raises(BadFiles, match="longer than"):
            made.load(np.array([1, SLOW]))


def test_a_file_that_was_lost_is_counted_before_anyone_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store(folder, tmp_path, loaders=1) as (made, _):
        counts: list[tuple[int, int]] = []
        monkeypatch.setattr(
            made.loading, "_on_answers", lambda: counts.append((made.loading.core.failed, made.snapshot().failed))
        )
        with Killer(folder / NAMES[SLOW], lambda: made.stage._children):
            made.check()
    assert set(counts) == {(0, 0), (1, 1)}


def test_a_file_whose_loaders_die_is_bad_with_the_signal(folder: Path, tmp_path: Path) -> None:
    with store(folder, tmp_path, loaders=1) as (made, arena):
        with Killer(folder / NAMES[SLOW], lambda: made.stage._children):
            bad = made.check()
        assert [b.number for b in bad] == [SLOW]
        assert bad[0].why == "its loader was killed by SIGKILL; the system may have run out of memory"
        assert made.stage.replaced == 2
        assert_the_others_are_there(made, arena, folder)


def test_a_bad_file_keeps_no_slot(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("0.png", "2.png", "3.png"):
        Image.new("RGB", (SIZE, SIZE), (10, 20, 30)).save(folder / name)
    (folder / "1.png").write_bytes(b"no image")
    with store(folder, tmp_path, loaders=1, slots=3) as (made, _):
        bad = made.check()
        assert [b.number for b in bad] == [1]
        assert made.drop(bad).tolist() == [0, 2, 3]
        checked = made.snapshot().done
        made.load(np.array([1, 2]))
        made.unload(np.array([1, 2]))
        # There is room for all three that are good: the slot of the bad one was free, and nothing had to go for it.
        made.load(np.array([0, 1, 2]))
        assert len(set(made.slots_of(np.array([0, 1, 2])).tolist())) == 3
        assert made.snapshot().done == checked


MANY, SET = 40, 6


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour each, which is what distinguishes them."""
    path = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        Image.new("RGB", (SIZE, SIZE), (6 * number, 255 - 6 * number, 90)).save(path / f"{number:02}.png")
    return path


def settled(made: Store, done: int) -> int:
    """How many files have been decoded when `done` have, and a moment later."""
    wait_for(lambda: made.snapshot().done >= done)
    time.sleep(0.3)
    return made.snapshot().done


def assert_loaded(made: Store, arena: Arena, folder: Path, samples: np.ndarray) -> None:
    out = np.empty((3, SIZE, SIZE), dtype=np.int8)
    for number, slot in zip(samples.tolist(), made.slots_of(samples).tolist(), strict=True):
        Preprocessor(size=SIZE, resize=SIZE).decode_into(folder / f"{number:02}.png", out)
        np.testing.assert_array_equal(arena.sample(slot), out)


@pytest.mark.parametrize("slots", [SET, SET + 1, 17, MANY])
def test_every_file_is_decoded_once_whatever_the_memory(many: Path, tmp_path: Path, slots: int) -> None:
    order = np.random.default_rng(slots).permutation(MANY)
    with store(many, tmp_path, loaders=2, slots=slots, at_a_time=SET, ahead=True) as (
        made,
        arena,
    ):
        for begin in range(0, MANY, SET):
            samples = order[begin : begin + SET]
            made.load(samples)
            assert_loaded(made, arena, many, samples)
            assert made.progress == (len(samples), len(samples))
            made.unload(samples)
        assert made.snapshot().done == MANY
        assert made.known == MANY


def test_the_next_set_is_decoded_while_nobody_asks(many: Path, tmp_path: Path) -> None:
    with store(many, tmp_path, loaders=2, slots=17, at_a_time=SET, ahead=True) as (made, arena):
        samples = np.arange(SET) * 5
        made.load(samples)
        assert settled(made, 17) == 17, "all slots are put to use, and none that is needed"
        assert_loaded(made, arena, many, samples)
        made.unload(samples)
        assert settled(made, 17) == 17, "the next set may need as many slots as this one did"


def test_what_is_not_asked_for_is_not_decoded(many: Path, tmp_path: Path) -> None:
    with store(many, tmp_path, loaders=2, slots=SET, at_a_time=SET) as (made, arena):
        samples = np.array([3, 30, 7, 11, 39, 0])
        made.load(samples)
        assert settled(made, SET) == SET
        made.unload(samples)
        made.load(samples)
        assert_loaded(made, arena, many, samples)
        assert settled(made, SET) == SET


def test_bad_files_end_the_next_load_and_a_check_names_the_others(many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in many.iterdir():
        (folder / path.name).write_bytes(b"no image" if path.name in ("02.png", "38.png") else path.read_bytes())
    with store(folder, tmp_path, loaders=2, slots=17, at_a_time=SET, ahead=True) as (made, _):
        first, second = np.arange(10, 16), np.arange(20, 26)
        made.load(first)
        settled(made, 17)
        made.unload(first)
        with pytest.raises(BadFiles, match=r"02\.png"):
            made.load(second)
        assert [b.path.name for b in made.check()] == ["02.png", "38.png"]
        assert (made.known, made.snapshot().done) == (MANY, MANY)


def test_a_check_waits_for_files_that_are_on_their_way(folder: Path, tmp_path: Path) -> None:
    with store(folder, tmp_path, loaders=2, at_a_time=2, ahead=True) as (made, arena):
        made.load(np.array([0, 1]))
        wait_for(lambda: made._residents.coming[SLOW])
        with Killer(folder / NAMES[SLOW], lambda: made.stage._children):
            assert [b.number for b in made.check()] == [SLOW]
        assert made.known == len(NAMES)
        assert_the_others_are_there(made, arena, folder)


def test_a_check_costs_no_file_its_slot_while_all_have_room(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store(many, tmp_path, loaders=2, at_a_time=SET, ahead=True) as (made, arena):
        made.ahead_may_go_on = go_on = threading.Event()
        made.load(np.arange(SET))
        wait_for(lambda: made._residents.coming.any())
        one_by_one = made._one_by_one

        def once_all_are_there(files: np.ndarray) -> Iterator[int]:
            go_on.set()
            wait_for(lambda: made.known == MANY)
            yield from one_by_one(files)

        monkeypatch.setattr(made, "_one_by_one", once_all_are_there)
        assert made.check() == ()
        assert_loaded(made, arena, many, np.arange(MANY))
        assert made.snapshot().done == MANY


def test_a_check_goes_on_when_a_slot_is_given_back_after_the_next_file_was_read(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store(many, tmp_path, loaders=1, slots=2) as (made, _):
        one_by_one, unpin = made._one_by_one, made.loading.unpin
        handed_over: list[int] = []

        def watched(files: np.ndarray) -> Iterator[int]:
            for number in one_by_one(files):
                yield number
                handed_over.append(number)

        def late(slots: list[int]) -> None:
            if slots:
                wait_for(lambda: len(handed_over) > 2)
            unpin(slots)

        monkeypatch.setattr(made, "_one_by_one", watched)
        monkeypatch.setattr(made.loading, "unpin", late)
        checking = threading.Thread(target=made.check, daemon=True)
        checking.start()
        checking.join(PATIENCE_S)
        assert made.known == MANY


def test_a_load_ends_when_the_samples_do(many: Path, tmp_path: Path) -> None:
    with store(many, tmp_path, loaders=1, slots=MANY) as (made, _):
        errors: list[BaseException] = []

        def load() -> None:
            try:
                made.load(np.arange(MANY))
            except PipelineError as error:
                errors.append(error)

        os.kill(made.stage.pids[0], signal.SIGSTOP)
        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(0.2)
        made.stop()
        made.loading.stop()
        thread.join(60)
        assert not thread.is_alive()
        assert len(errors) == 1
