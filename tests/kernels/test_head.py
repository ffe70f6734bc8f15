"""The average pool and the fully connected layer on an emulated GPU, bit for bit, for few images and for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.families.head import FEW, Linear, Mean
from int4core.backends.cuda.plan.ops import LinearOp, PoolOp
from tests.kernels.emulator.driver import REVERSE, Emulated, needs_compiler

Array = np.ndarray[Any, Any]


def run(kernel: Linear | Mean, source: Array, folder: Path, flags: int, arch: int) -> Array:
    """What the kernel writes over poison, as bytes."""
    target = np.full(kernel.op.output.bytes, 0xA5, np.uint8)
    constants = kernel.constants()
    tensors = {"source": source.ctypes.data, "target": target.ctypes.data}
    arguments = kernel.arguments(tensors, [array.ctypes.data for array in constants])
    emulated = Emulated(kernel.source, folder, arch)
    emulated(kernel.grid, kernel.threads, arguments, flags, kernel.shared_bytes)
    return target


@needs_compiler
@pytest.mark.parametrize("arch", [750, 900])
@pytest.mark.parametrize("n", [1, FEW, FEW + 1])
def test_linear_equal_to_integers(n: int, arch: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Classes that are no whole tile, more slices than blocks of features among them."""
    rng = np.random.default_rng()
    for features, classes in ((2048, 130), (64, 65), (640, 3)):
        weight = rng.integers(-128, 128, (classes, features)).astype(np.int8)
        bias = rng.integers(-(2**20), 2**20, classes).astype(np.int32)
        x = rng.integers(0, 128, (n, features)).astype(np.uint8)
        kernel = Linear(LinearOp("fc", "source", "target", n, features, weight, bias))
        got = run(kernel, x, tmp_path_factory.getbasetemp(), REVERSE if features == 640 else 0, arch)
        np.testing.assert_array_equal(got.view(np.int32).reshape(n, classes), x @ weight.astype(np.int32).T + bias)


@needs_compiler
@pytest.mark.parametrize("n", [1, FEW, FEW + 1])
def test_mean_equal_to_integers(n: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of the first 7 x 7 of 8 x 9 pixels, channels padded with zeros."""
    x = np.random.default_rng().integers(0, 128, (n, 8, 9, 300)).astype(np.uint8)
    kernel = Mean(PoolOp("pool", "source", "target", n, 8, 9, 300, 7))
    got = run(kernel, x, tmp_path_factory.getbasetemp(), 0, 900).reshape(n, -1)
    total = x[:, :7, :7].sum((1, 2), dtype=np.int64)
    np.testing.assert_array_equal(got[:, :300], np.minimum((2 * total + 49) // 98, 127))
    assert got.shape[1] == 320
    assert not got[:, 300:].any()
