"""The bundled model on eight images that are drawn in integers: every sum of its last layer.

The published model's tensors are in test_golden_published.py.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from int4core.engine import Engine
from int4core.model import Model
from tests.int4core import golden

IMAGES_SHA256 = "ffde0109f0843bbc548a9335d2719f23141285e8cb359107e9cefd2c1d2ffc49"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return golden.images()


@pytest.fixture(scope="module")
def sums() -> np.ndarray:
    return np.load(golden.SUMS)


def test_the_images_are_those_of_the_sums(images: np.ndarray) -> None:
    assert (images.shape, images.dtype) == ((8, 3, 224, 224), np.int8)
    assert hashlib.sha256(images.tobytes()).hexdigest() == IMAGES_SHA256


def test_sums_of_eight_images(images: np.ndarray, sums: np.ndarray) -> None:
    assert (sums.shape, sums.dtype) == ((8, 1000), np.int32)
    assert len(np.unique(sums.argmax(axis=1))) == len(images), "images of different answers"
    with Engine(Model.load(golden.MODEL)) as engine:
        np.testing.assert_array_equal(engine.accumulators(images), sums)


@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_sums_of_eight_images_on_a_gpu(images: np.ndarray, sums: np.ndarray, batch_size: int) -> None:
    with Engine(Model.load(golden.MODEL), "cuda", batch_size=batch_size) as engine:
        np.testing.assert_array_equal(engine.accumulators(images), sums)
