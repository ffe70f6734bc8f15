"""A session over the tests' images, and what it has to answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from int4core import Engine, Model, NumpyOptions
from pipeline.device.scheduler import Sizes
from pipeline.samples.preprocess import Preprocessor
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from pipeline.stages.load import Preparation
from tests.pipeline.conftest import IMAGES, SIZE

RESIZE = round(SIZE * 256 / 224)
TOP = 3


@pytest.fixture(scope="module")
def paths(images: Path) -> list[str]:
    return [str(images / f"{number}.jpg") for number in range(IMAGES)]


@pytest.fixture(scope="module")
def best(model_dir: Path, paths: list[str]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Classes and scores of the images, computed in this process without any of the session's parts."""
    x = np.empty((IMAGES, 3, SIZE, SIZE), dtype=np.int8)
    for sample, path in zip(x, paths, strict=True):
        Preprocessor(size=SIZE, resize=RESIZE).decode_into(path, sample)
    ids, scores = Engine(Model.load(model_dir)).top_k(x, TOP)
    return [(tuple(i), tuple(s)) for i, s in zip(ids.tolist(), scores.tolist(), strict=True)]


@pytest.fixture(scope="module")
def spec(model_dir: Path) -> SessionSpec:
    return SessionSpec(
        model=model_dir,
        backend="numpy",
        backend_options=NumpyOptions(),
        sizes=Sizes.full(4),
        input_shape=(3, SIZE, SIZE),
        preparation=Preparation("images", SIZE, RESIZE),
        loaders=2,
        top=TOP,
        hold_s=0.05,
    )


@contextmanager
def running(spec: SessionSpec) -> Iterator[Session]:
    with Session(spec) as session:
        session.start()
        yield session


@pytest.fixture(scope="module")
def session(spec: SessionSpec) -> Iterator[Session]:
    """One for all tests that leave it as it was."""
    with running(spec) as session:
        yield session
        assert session.leases == 0
