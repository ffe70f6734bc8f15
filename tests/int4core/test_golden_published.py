"""The published model on the golden tensors: every layer of one image, every logit of eight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pytest

from int4core.engine import Engine
from int4core.model import Model
from tests.paths import SHARED, needs_shared

pytestmark = needs_shared


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(Model.load(SHARED / "model-v0.5" / "model")) as engine:
        yield engine


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    with np.load(SHARED / "golden" / "inputs8.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def trace(engine: Engine, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return engine.trace(inputs["x"][:1])


def test_logits_of_eight_images(engine: Engine, inputs: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(engine.accumulators(inputs["x"]), inputs["logits"])
    assert engine.input_shape == (3, 224, 224)


def test_hash_of_every_layer(trace: dict[str, np.ndarray]) -> None:
    golden = json.loads((SHARED / "golden" / "layers_image0.json").read_text())
    assert len(golden) == 122
    for name, expected in golden.items():
        values = trace[name][0]
        assert list(values.shape) == expected["shape"], name
        assert (values.min(), values.max()) == (expected["min"], expected["max"]), name
        digest = hashlib.sha256(np.ascontiguousarray(values, "<i4").tobytes()).hexdigest()
        assert digest == expected["sha256_le_i32_chw"], name


def test_elements_of_every_quantised_layer(trace: dict[str, np.ndarray]) -> None:
    with np.load(SHARED / "golden" / "layers_image0.npz") as golden:
        assert len(golden.files) > 50
        for name in golden.files:
            np.testing.assert_array_equal(trace[name][0], golden[name], err_msg=name)


def test_trace_ends_in_the_logits(trace: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(trace["fc"], inputs["logits"][:1])
