"""Fixtures of the application's tests: a small model, images, and the classes it gives them."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture
def clean() -> Iterator[None]:
    """No segment and no child process of ours may be left behind."""
    resource_tracker.ensure_running()  # Python's own, which a first spawn starts and nothing ends
    segments, children = ours(), set(psutil.Process().children(recursive=True))
    yield
    assert ours() <= segments
    assert set(psutil.Process().children(recursive=True)) <= children


def ours() -> set[Path]:
    """Segments whose process is gone: other runs on this machine may have theirs."""
    found = segment_folder().glob("int4-resnet50-*")
    return {path for path in found if not psutil.pid_exists(int(path.name.split("-")[2]))}
