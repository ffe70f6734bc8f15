"""The proof that a saturating multiply-add is a requantisation to s8, against the requantisation of every sum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import Branch, ConvOp, Limits
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.backends.cuda.plan.saturate import NEVER, first_sums, saturating_line
from int4core.dtypes import S8, S32
from int4core.model import Model
from int4core.quantize import requantize
from tests.kernels.problems import draws
from tests.paths import ROOT

SPECIAL = (0, 1, 2, 3, 41, 257, 1024, 2048, 3072, 3641, 4096, 16384, 32768, 49152, 65534, 65535)


def branch_of(factor: int, shift: int, bias: int, low: int, high: int) -> Branch:
    down = Rescale(np.array([factor], np.uint16), shift)
    weight = np.zeros((1, 32, 1, 1), np.int8)
    return Branch("branch", weight, np.array([bias], np.int16), down, down, Limits(low, high))


def saturated(branch: Branch, sums: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """What rescale_s8.cuh computes of `sums`, bias included: products of float32s are exact in float64, a float32 sum
    of 24 and 46 bits is rounded once. None without a line."""
    line = saturating_line(branch)
    if line is None:
        return None
    bias, slope, start = int(branch.bias[0]), np.float64(line.slope[0]), np.float64(line.start[0])
    exact = (sums - bias) * slope
    share = (exact + start).astype(np.float32)
    # Where the float64 sum was rounded, it may not have become a half of a float32's unit.
    assert np.array_equal(share, (np.longdouble(exact) + np.longdouble(start)).astype(np.float32))
    result: npt.NDArray[np.int64] = np.floor(255 * share.clip(0, 1).astype(np.float64)).astype(np.int64) - 128
    return result


@pytest.mark.parametrize("shift", [16, 12, 8, 1, 0])
def test_a_line_gives_what_the_requantisation_gives_for_every_sum(shift: int) -> None:
    rng, found = draws(), 0
    for factor in (*SPECIAL, *rng.integers(0, 65536, 20).tolist(), *rng.integers(500, 30000, 20).tolist()):
        bias = int(rng.integers(-1000, 1001))
        for low, high in ((-70000, 70000), (-1001, 3000), (min(bias, 0), max(bias, 0))):
            sums = np.arange(low, high + 1)
            got = saturated(branch_of(factor, shift, bias, low, high), sums)
            if got is not None:
                found += 1
                assert np.array_equal(got, requantize(sums, factor, shift, S8)), (factor, bias, low, high)
    assert found > 100


def test_bounds_of_the_sums_are_kept_to() -> None:
    """A channel of few sums has a line where one of more sums has none."""
    assert saturating_line(branch_of(41, 16, -144, -70000, 70000)) is None
    assert saturating_line(branch_of(41, 16, -144, -20000, 20000)) is not None


def test_one_channel_without_a_line_leaves_all_without() -> None:
    branch = branch_of(3641, 16, -144, -70000, 70000)
    assert saturating_line(branch) is not None
    two = Rescale(np.array([3641, 41], np.uint16), 16)
    both = Branch("both", branch.weight, np.array([-144, -144], np.int16), two, two, branch.limits)
    assert saturating_line(both) is None


@pytest.mark.parametrize("shift", [16, 3, 0])
def test_results_rise_at_the_first_sums(shift: int) -> None:
    factors = np.array(SPECIAL, np.uint16)
    first = first_sums(Rescale(factors, shift))
    for factor, sums in zip(factors, first, strict=True):
        if factor == 0:
            assert sums.tolist() == [-NEVER] * 128 + [NEVER] * 127
            continue
        results = np.arange(-127, 128)
        assert (requantize(sums, int(factor), shift, S32) >= results).all()
        assert (requantize(sums - 1, int(factor), shift, S32) < results).all()


def test_every_residual_convolution_of_the_default_model_has_a_line() -> None:
    branches = [op.branch for op in fuse(Model.load(ROOT / "model").network, 1) if isinstance(op, ConvOp) and op.branch]
    assert len(branches) == 4
    assert all(saturating_line(branch) is not None for branch in branches)
