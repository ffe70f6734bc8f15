"""Winograd's transformation in integers: equal to the direct convolution, and within 8 bits, whatever the weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.epilogue import accumulator_offset
from int4core.backends.cuda.families.winograd_deep_wgmma import WgmmaDeepWinograd, default
from int4core.backends.cuda.families.winograd_wgmma import WgmmaWinograd, doubled_constants, transform_weights
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual
from int4core.errors import EngineError
from tests.kernels.problems import Problem, convolve, draws, unpack

CONV = Convolution(2, 5, 8, 64, 64, 3, 1, 1)

WEIGHTS = {
    "random": lambda rng, shape: rng.integers(-8, 8, shape),
    "the least and the most": lambda rng, shape: rng.choice([-8, 7], shape),
    "all the least": lambda rng, shape: np.full(shape, -8),
    "opposite neighbours": lambda rng, shape: np.broadcast_to([-8, 7, -8], shape),
}


@pytest.mark.parametrize("kind", list(WEIGHTS))
@pytest.mark.parametrize("full", [False, True], ids=["any activations", "0 and 15"])
def test_doubled_sums_are_those_of_the_direct_convolution(kind: str, full: bool) -> None:
    rng = draws()
    problem = Problem(CONV, rng)
    problem.weight = WEIGHTS[kind](rng, problem.weight.shape).astype(np.int8)
    if full:
        problem.input = rng.choice([0, 15, 240, 255], problem.input.shape).astype(np.uint8)
    op = problem.op
    wide = np.pad(unpack(problem.input).astype(np.int64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    d = [wide[:, :, x : x + CONV.w - 1 : 2] for x in range(4)]
    v = np.stack((d[0] - d[2] + 16, d[1] + d[2], d[2] - d[1] + 16, d[1] - d[3] + 16))
    assert v.min() >= 0
    assert v.max() <= 31
    u = transform_weights(op.weight).astype(np.int64)
    rows = [np.einsum("pnhtc,kcp->pnhtk", v[:, :, r : r + CONV.h], u[:, :, r]) for r in range(3)]
    m = sum(rows)
    offset = doubled_constants(op)["offset"].astype(np.int64)
    pixels = m[0] + (m[1] + m[2]) + offset[:, 0].ravel(), m[3] + (m[1] - m[2]) + offset[:, 1].ravel()
    found = np.stack(pixels, 3).reshape(CONV.n, CONV.h, CONV.w, CONV.k)
    sums = convolve(problem.input, op.weight, 1, 1) + op.bias
    wanted = 2 * (sums + accumulator_offset(op.rescale.wide, op.rescale.shift))
    assert np.array_equal(found, wanted)
    assert wanted.min() >= 0
    assert wanted.max() < 1 << 24


def test_transformed_weights_of_four_bits_are_of_eight() -> None:
    rows = np.array(list(product(range(-8, 8), repeat=3)), np.int8).reshape(-1, 1, 1, 3)
    u = transform_weights(np.repeat(rows, 3, 2))
    assert (u.min(), u.max()) == (-24, 22)


def test_what_the_transformation_does_not_take_is_refused() -> None:
    rng, chip = np.random.default_rng(0), CHIPS["h200"]
    for conv, why in (
        (replace(CONV, stride=2), "stride 1"),
        (replace(CONV, c=128), "takes 64"),
        (replace(CONV, residual=Residual.U4), "no residual"),
        (replace(CONV, residual=Residual.U4, output=Output.U7), "no residual"),
        (replace(CONV, w=4), "units of 32 pairs"),
        (replace(CONV, w=120), "shared memory"),
    ):
        with pytest.raises(EngineError, match=why):
            WgmmaWinograd(Problem(conv, rng).op, 170, chip)
    op = Problem(replace(CONV, w=56), rng).op
    with pytest.raises(EngineError, match="takes 8 bits"):
        WgmmaWinograd(replace(op, weight=np.full_like(op.weight, 64)), 170, chip)


def test_what_the_transformation_of_deep_layers_does_not_take_is_refused() -> None:
    rng, chip = np.random.default_rng(0), CHIPS["h200"]
    deep = replace(CONV, c=128, k=128)
    for conv, number, why in (
        (replace(deep, stride=2), 180, "stride 1"),
        (replace(deep, c=192), 180, "multiples of 128"),
        (replace(deep, k=64), 180, "multiples of 128"),
        (replace(deep, residual=Residual.U4), 180, "no residual"),
        (replace(deep, w=250), 180, "at most 256"),
        (replace(deep, c=1024), 180, "shared memory"),
        (replace(deep, c=256), 182, "shared memory"),
    ):
        with pytest.raises(EngineError, match=why):
            WgmmaDeepWinograd(Problem(conv, rng).op, number, chip)
    op = Problem(deep, rng).op
    with pytest.raises(EngineError, match="takes 8 bits"):
        WgmmaDeepWinograd(replace(op, weight=np.full_like(op.weight, 64)), 180, chip)
    with pytest.raises(EngineError, match=f"{op.name}: .* takes 8 bits"):
        default(replace(op, weight=np.full_like(op.weight, 64)), chip)
