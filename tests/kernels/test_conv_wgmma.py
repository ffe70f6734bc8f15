"""The Hopper convolutions on a GPU, bit for bit against NumPy integers: full range, ties, poison."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.families.conv_wgmma import CONFIGS, Plan, default_config
from int4core.backends.cuda.families.epilogue import channel_constants, residual_constants
from int4core.backends.cuda.families.layouts import arrange_wgmma, join_weights
from int4core.backends.cuda.families.rows_wgmma import RowsPlan
from int4core.backends.cuda.jit.nvrtc import compile_kernel, find_nvrtc
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.dtypes import S8, S32, U4, U7, U31
from int4core.errors import EngineError
from int4core.quantize import requantize

POISON = 0xA5

TRIED = (0, 2, 3, 5, 10, 11)
"""Configurations of every kind: each tile_n, resident and streamed, with and without turns."""

SHAPES = {
    "1x1": Convolution(1, 14, 14, 256, 256, 1, 1, 0),
    "1x1 of 64 channels": Convolution(1, 28, 28, 64, 64, 1, 1, 0),
    "1x1 of 96 channels": Convolution(1, 9, 5, 96, 64, 1, 1, 0),
    "3x3": Convolution(1, 28, 28, 128, 128, 3, 1, 1),
    "3x3 of 64 channels": Convolution(1, 56, 56, 64, 64, 3, 1, 1),
    "3x3 stride 2": Convolution(1, 28, 28, 128, 128, 3, 2, 1),
    "residual": Convolution(1, 14, 14, 64, 256, 1, 1, 0, residual=Residual.U4),
    "residual to u7": Convolution(1, 7, 7, 512, 2048, 1, 1, 0, output=Output.U7, residual=Residual.U4),
    "residual convolution": Convolution(
        1, 14, 14, 128, 512, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(28, 28, 256, 2)
    ),
}


def factors(rng: np.random.Generator, k: int, top: int) -> Rescale:
    """Factors over the whole range, with zeros and powers of two among them, so that ties happen."""
    values = rng.integers(0, top, k)
    special = rng.choice([0, 1, 4096, 32768, 49152, 65535], k)
    return Rescale(np.where(rng.integers(0, 6, k) == 0, special, values).astype(np.uint16), 16)


class Problem:
    """Random weights, constants and inputs of a convolution, and its exact result."""

    def __init__(self, conv: Convolution, rng: np.random.Generator) -> None:
        self.conv = conv
        k = conv.k
        self.weight = rng.integers(-7, 8, (k, conv.c, conv.taps, conv.taps)).astype(np.int8)
        self.bias = rng.integers(-3000, 3000, k).astype(np.int16)
        self.rescale = factors(rng, k, 100 if conv.residual else 600)
        self.input = rng.integers(0, 256, (conv.n, conv.h, conv.w, conv.c // 2), np.uint8)
        self.residual = np.zeros(0, np.uint8)
        if conv.residual == Residual.U4:
            self.kept = Rescale(rng.integers(0, 65536, k).astype(np.uint16), int(rng.integers(0, 4)))
            self.residual = rng.integers(0, 256, (conv.n, conv.p, conv.q, k // 2), np.uint8)
        if conv.source:
            src = conv.source
            self.source_weight = rng.integers(-7, 8, (k, src.c, 1, 1)).astype(np.int8)
            self.source_bias = rng.integers(-3000, 3000, k).astype(np.int16)
            self.down = factors(rng, k, 6000)
            self.up = Rescale(rng.integers(0, 32000, k).astype(np.uint16), 0)
            self.residual = rng.integers(0, 256, (conv.n, src.h, src.w, src.c // 2), np.uint8)

    def expected(self) -> np.ndarray[Any, Any]:
        conv = self.conv
        sums = convolve(self.input, self.weight, conv.stride, conv.pad) + self.bias
        if conv.residual == Residual.U4:
            sums = sums + requantize(unpack(self.residual), self.kept.factor, self.kept.shift, U31)
        if conv.source:
            branch = convolve(self.residual, self.source_weight, conv.source.stride, 0) + self.source_bias
            narrow = requantize(branch, self.down.factor, self.down.shift, S8)
            sums = sums + requantize(narrow, self.up.factor, self.up.shift, S32)
        out = U7 if conv.output == Output.U7 else U4
        result = requantize(np.maximum(sums, 0), self.rescale.factor, self.rescale.shift, out)
        packed = result if out is U7 else result[..., 0::2] | result[..., 1::2] << 4
        return packed.astype(np.uint8)


def unpack(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)


def convolve(packed: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], stride: int, pad: int) -> Any:
    values = np.pad(unpack(packed).astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    taps = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(values, (taps, taps), (1, 2))[:, ::stride, ::stride]
    products = np.tensordot(windows, weight.astype(np.float64), ((3, 4, 5), (1, 2, 3)))
    return products.astype(np.int64)


@cache
def compiled(name: str, defines: tuple[tuple[str, int], ...]) -> bytes:
    library = find_nvrtc()
    assert library is not None, "the nvidia-cuda-nvrtc wheel is not installed"
    return compile_kernel(library, name, dict(defines), "sm_90a").cubin


def load(cupy: Any, folder: Path, name: str, defines: dict[str, int], function: str) -> Any:
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled(name, tuple(defines.items())))
    return cupy.RawModule(path=str(binary)).get_function(function)


def run_conv(cupy: Any, folder: Path, problem: Problem, plan: Plan) -> Any:
    conv, config = problem.conv, plan.config
    kernel = load(cupy, folder, "conv_wgmma.cu", plan.defines, "conv_wgmma")
    kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
    weights = arrange_wgmma(problem.weight, config.tile_n, conv.k_bytes)
    kept = problem.kept if conv.residual == Residual.U4 else None
    channels = channel_constants(
        problem.bias, problem.rescale, config.tile_n, kept, conv.source is not None
    )
    residual_channels = channels
    if conv.source:
        branch = arrange_wgmma(problem.source_weight, config.tile_n, conv.k_bytes)
        weights = join_weights(weights, branch)
        residual_channels = residual_constants(problem.source_bias, problem.down, problem.up, config.tile_n)
    device = [cupy.asarray(a.view(np.uint8).ravel()) for a in (weights, channels, residual_channels)]
    source, residual = cupy.asarray(problem.input), cupy.asarray(problem.residual)
    width = conv.k // (2 if conv.output == Output.U4 else 1)
    output = cupy.full((conv.n, conv.p, conv.q, width), POISON, np.uint8)
    maps = plan.tensor_maps(source.data.ptr, residual.data.ptr)
    kernel(
        (*plan.grid, 1), (config.threads, 1, 1), (*maps, *device, output, plan.shape_argument()),
        shared_mem=plan.shared_bytes,
    )  # fmt: skip
    return output.get()


@pytest.fixture
def cupy_hopper(cupy: Any) -> Any:
    capability = cupy.cuda.Device().compute_capability
    if capability != "90":
        pytest.skip(f"needs compute capability 9.0, this GPU has {capability}")
    return cupy


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_equal_to_integers(cupy_hopper: Any, tmp_path: Path, shape: str, n: int) -> None:
    problem = Problem(replace(SHAPES[shape], n=n), np.random.default_rng())
    expected = problem.expected()
    tried = 0
    for number in sorted({default_config(problem.conv), *TRIED}):
        try:
            plan = Plan(problem.conv, CONFIGS[number])
        except EngineError:
            continue
        tried += 1
        result = run_conv(cupy_hopper, tmp_path, problem, plan)
        np.testing.assert_array_equal(result, expected, f"{number}: {plan.config}")
    assert tried > 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "channels", "rows", "teams"), [(56, 64, 8, 4), (30, 64, 8, 3), (28, 128, 4, 2)]
)
def test_tiles_of_rows_equal_to_integers(
    cupy_hopper: Any, tmp_path: Path, size: int, channels: int, rows: int, teams: int
) -> None:
    conv = Convolution(3, size, size, channels, channels, 3, 1, 1)
    problem, plan = Problem(conv, np.random.default_rng()), RowsPlan(conv, rows, teams)
    kernel = load(cupy_hopper, tmp_path, "rows_wgmma.cu", plan.defines, "rows_wgmma")
    kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
    weights = arrange_wgmma(problem.weight, plan.tile_n, plan.k_bytes)
    constants = channel_constants(problem.bias, problem.rescale, plan.tile_n)
    device = [cupy_hopper.asarray(a.view(np.uint8).ravel()) for a in (weights, constants)]
    source = cupy_hopper.asarray(problem.input)
    output = cupy_hopper.full((conv.n, size, size, channels // 2), POISON, np.uint8)
    arguments = (plan.tensor_map(source.data.ptr), *device, output, plan.shape_argument())
    kernel((*plan.grid, 1), (plan.threads, 1, 1), arguments, shared_mem=plan.shared_bytes)
    np.testing.assert_array_equal(output.get(), problem.expected())
