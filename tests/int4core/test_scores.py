"""Top-k and its scores: the order, the accuracy, and the order of summation that GPUs follow."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from int4core import scores
from int4core.engine import Engine
from int4core.errors import EngineError
from int4core.quantize import dequantize_logits
from tests.int4core.networks import as_model, random_input, random_network

NET = random_network(seed=1)


def problem(
    seed: int, rows: int, classes: int, spread: int = 2**31 - 1, scale: float = 1000.0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Accumulators up to `spread` and a scale a class."""
    rng = np.random.default_rng(seed)
    sums = rng.integers(-spread - 1, spread, (rows, classes), dtype=np.int32, endpoint=True)
    return sums, (scale * rng.uniform(0.5, 2, classes)).astype(np.float32)


@pytest.mark.parametrize("classes", [1, 5, 255, 256, 257, 1000, 2500])
@pytest.mark.parametrize("spread", [3, 20_000, 2**31 - 1])
def test_the_best_come_first_and_the_lower_class_of_equals(classes: int, spread: int) -> None:
    sums, scale = problem(classes, 7, classes, spread)
    if spread == 3:
        scale[:] = 16.0
    logits = dequantize_logits(sums, scale)
    expected = np.argsort(-logits, axis=1, kind="stable")
    for k in {1, min(5, classes), min(16, classes)}:
        ids, found = scores.top_k(sums, scale, k)
        assert (ids.dtype, found.dtype, ids.shape, found.shape) == (np.int32, np.float32, (7, k), (7, k))
        np.testing.assert_array_equal(ids, expected[:, :k])
        assert (np.diff(found, axis=1) <= 0).all()
    np.testing.assert_array_equal(ids[:, 0], logits.argmax(axis=1))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double that is longer than a double")
@pytest.mark.parametrize("spread", [300, 20_000, 200_000, 2**31 - 1])
@pytest.mark.parametrize("classes", [2, 37, 1000])
def test_scores_are_the_softmax_rounded_once(classes: int, spread: int) -> None:
    sums, scale = problem(1, 200, classes, spread)
    logits = dequantize_logits(sums, scale)
    exact = np.exp(logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    k = min(16, classes)
    ids, found = scores.top_k(sums, scale, k)
    wanted = np.take_along_axis(exact, ids, axis=1)
    # Nothing that the bound allows rounds to anything else.
    least, most = ((wanted * (1 + way * scores.RELATIVE_ERROR)).astype(np.float32) for way in (-1, 1))
    assert (least <= found).all()
    assert (found <= most).all()
    assert (least == most).mean() > 0.999
    if k == classes:
        np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), 1, rtol=1e-6)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double that is longer than a double")
def test_the_exponential_is_within_its_bound() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([-rng.uniform(0, 104, 50_000), -rng.uniform(0, 1e-3, 1000), [0.0, -104.0]])
    exact = np.exp(x.astype(np.longdouble))
    assert float(np.max(np.abs(scores.exponential(x) / exact - 1))) < scores.RELATIVE_ERROR / 2
    assert scores.exponential(np.zeros(1)).item() == 1.0
    far = scores.exponential(np.array([-104.0, -105.0, -1e300]))
    assert (far > 0).all()
    assert (far == far[0]).all()
    assert not far.astype(np.float32).any(), "what lies below the cut has a score of 0"
    assert scores.exponential(np.array([-103.9])).astype(np.float32).item() > 0, "and nothing else has"


def test_ties_share_the_score_and_far_classes_have_none() -> None:
    sums = np.array([[8, 8, 8, 8], [2**31 - 1, -(2**31), 0, 2**31 - 1]], np.int32)
    ids, found = scores.top_k(sums, np.ones(4, np.float32), 4)
    assert ids.tolist() == [[0, 1, 2, 3], [0, 3, 2, 1]]
    assert found.tolist() == [[0.25] * 4, [0.5, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("classes", [1, 256, 300, 1000])
def test_sums_are_in_the_order_that_is_documented(classes: int) -> None:
    """Python's own floats, one addition at a time."""
    terms = np.random.default_rng(classes).uniform(0, 1, (3, classes)) ** 20
    for row, found in zip(terms.tolist(), scores.folded_sum(terms), strict=True):
        lanes = [0.0] * scores.LANES
        for i, term in enumerate(row):
            lanes[i % scores.LANES] += term
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        assert lanes[0] == found


def test_the_exponential_is_the_sequence_that_is_documented() -> None:
    """Python's own floats, one operation at a time: no array routine may fuse or reorder them."""
    x = -np.random.default_rng(0).uniform(0, 120, 999)
    for value, found in zip(x.tolist(), scores.exponential(x).tolist(), strict=True):
        scaled = max(value, -104.0) * scores.LOG2_E
        whole = round(scaled)
        r = (scaled - whole) * scores.LN_2
        total = scores.COEFFICIENTS[-1]
        for coefficient in reversed(scores.COEFFICIENTS[:-1]):
            total = total * r + coefficient
        exponent = struct.unpack("<d", struct.pack("<q", (1023 + whole) << 52))[0]
        assert total * exponent == found


@pytest.mark.parametrize("n", [0, 1, 3, 9])
def test_the_engine_gives_them_of_any_number_of_images(n: int) -> None:
    x = random_input(NET, n)
    with Engine(as_model(NET), batch_size=4) as engine:
        ids, found = engine.top_k(x, 3)
        assert (ids.shape, found.shape, ids.dtype, found.dtype) == ((n, 3), (n, 3), np.int32, np.float32)
        expected = scores.top_k(engine.accumulators(x), NET.scale.out_scale, 3)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(found, expected[1])
        np.testing.assert_array_equal(ids[:, 0], engine.top1(x))


@pytest.mark.parametrize(("k", "classes", "most"), [(0, 5, 5), (6, 5, 5), (17, 1000, 16), (-1, 1000, 16)])
def test_more_than_there_are_is_an_error(k: int, classes: int, most: int) -> None:
    why = f"top {k} of {classes} classes: ask for 1 to {most}"
    with pytest.raises(EngineError, match=why):
        scores.top_k(np.zeros((1, classes), np.int32), np.ones(classes, np.float32), k)
    if classes == NET.classes:
        with Engine(as_model(NET)) as engine, pytest.raises(EngineError, match=why):
            engine.top_k(random_input(NET, 1), k)
