"""Fixtures of the application's tests: a small model, images, and the classes it gives them."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from int4core import Engine, Model
from int4core.random_model import random_model
from pipeline.memory.arena import segment_folder
from pipeline.samples.preprocess import Preprocessor

# How long a test waits for what is to come.
PATIENCE_S = 300.0

IMAGES = 24
SIZE = 64


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3).save(path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    lines = []
    for number in range(IMAGES):
        small = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        size = (80 + 5 * number, 200 - 3 * number)
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=92)
        lines.append(f"{number}.jpg\t{number % 10}\n")
    (folder / "map.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def expected(model_dir: Path, images: Path) -> np.ndarray:
    """The classes of the images, computed in this process without any of the pipeline's stages."""
    preprocessor = Preprocessor(size=SIZE, resize=round(SIZE * 256 / 224))
    x = np.empty((IMAGES, 3, SIZE, SIZE), dtype=np.int8)
    for number in range(IMAGES):
        preprocessor.decode_into(images / f"{number}.jpg", x[number])
    return Engine(Model.load(model_dir)).top1(x)


@pytest.fixture(scope="session", autouse=True)
def _segments() -> Iterator[None]:
    """A folder of its own for the shared memory of these tests and of what they start.

    Other runs on this machine, those of other tests too, sweep what dead runs have left, and leave their own.
    """
    shm = segment_folder()
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory(prefix="int4-tests-", dir=shm) as folder:
        patched.setenv("INT4CORE_SHM_DIR", folder)
        yield


@pytest.fixture(autouse=True)
def _signals_are_heeded() -> Iterator[None]:
    """As a shell starts a command in the foreground: what nohup or a background job ignores, runs would ignore too."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def clean() -> Iterator[None]:
    """No segment and no child process of ours may be left behind."""
    resource_tracker.ensure_running()  # Python's own, which a first spawn starts and nothing ends
    segments, children = segments_now(), children_now()
    yield
    # A process that is killed at the end may take a moment on a busy machine.
    deadline = time.monotonic() + PATIENCE_S
    while (segments_now() - segments or children_now() - children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert segments_now() <= segments
    assert children_now() <= children


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def all_ended(pids: Iterable[int]) -> bool:
    """Whether none of these processes runs; one that has ended may still wait for its parent to ask how."""

    def ended(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return all(map(ended, pids))


def segments_now() -> set[Path]:
    return set(segment_folder().iterdir())


def children_now() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))
