"""The Hopper convolutions: plans of every shape without a GPU, and on one bit for bit against NumPy integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.device import chip_at
from int4core.backends.cuda.families.conv_wgmma import CONFIGS, FIRST_NUMBER, STATIC_BYTES, WgmmaConv, default
from int4core.backends.cuda.families.kernel import WORKSPACE, HasWorkspace, Kernel
from int4core.backends.cuda.families.means_wgmma import WgmmaMeans
from int4core.backends.cuda.families.pooled_wgmma import WgmmaPooled
from int4core.backends.cuda.families.residual_wgmma import WgmmaResidual
from int4core.backends.cuda.families.rows_wgmma import CONFIGS as ROWS
from int4core.backends.cuda.families.rows_wgmma import FIRST_NUMBER as FIRST_ROWS
from int4core.backends.cuda.families.rows_wgmma import WgmmaRows
from int4core.backends.cuda.families.stem_wgmma import FIRST_NUMBER as FIRST_WGMMA_STEM
from int4core.backends.cuda.families.table import candidates
from int4core.backends.cuda.families.winograd_deep_wgmma import WgmmaDeepWinograd
from int4core.backends.cuda.families.winograd_wgmma import WgmmaWinograd
from int4core.backends.cuda.jit.compiler import compile_all
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.backends.cuda.plan.ops import ConvOp, LinearOp, outputs
from int4core.errors import EngineError
from tests.kernels.problems import POISON, PairProblem, PooledProblem, Problem, draws, resnet34_convolutions
from tests.kernels.stems import StemProblem

H200 = CHIPS["h200"]

TRIED = (0, 2, 3, 5, 10, 11)
"""Configurations of every kind: each tile_n, resident and streamed, with and without turns."""

SHAPES = {
    "1x1": Convolution(1, 14, 14, 256, 256, 1, 1, 0),
    "1x1 of 64 channels": Convolution(1, 28, 28, 64, 64, 1, 1, 0),
    "1x1 of 96 channels": Convolution(1, 9, 5, 96, 64, 1, 1, 0),
    "3x3": Convolution(1, 28, 28, 128, 128, 3, 1, 1),
    "3x3 of 64 channels": Convolution(1, 56, 56, 64, 64, 3, 1, 1),
    "3x3 stride 2": Convolution(1, 28, 28, 128, 128, 3, 2, 1),
    "3x3 and residual": Convolution(1, 28, 28, 128, 128, 3, 1, 1, residual=Residual.U4),
    "3x3 and residual to u7": Convolution(1, 7, 7, 512, 512, 3, 1, 1, output=Output.U7, residual=Residual.U4),
    "3x3 and residual convolution": Convolution(
        1, 14, 14, 256, 256, 3, 1, 1, residual=Residual.CONVOLUTION, source=Source(28, 28, 128, 2)
    ),
    "residual": Convolution(1, 14, 14, 64, 256, 1, 1, 0, residual=Residual.U4),
    "residual to u7": Convolution(1, 7, 7, 512, 2048, 1, 1, 0, output=Output.U7, residual=Residual.U4),
    "residual convolution": Convolution(
        1, 14, 14, 128, 512, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(28, 28, 256, 2)
    ),
}


def op_of(conv: Convolution) -> ConvOp:
    """A convolution of this shape, of anything."""
    return Problem(conv, np.random.default_rng(0)).op


def resnet_convolutions(n: int) -> list[Convolution]:
    """The shapes of ResNet-50, 101 and 152 at 224x224, the stem aside."""
    found = []
    width, size, channels = 64, 56, 64
    for stage in range(4):
        inner, out, stride = width << stage, 4 * width << stage, 1 if stage == 0 else 2
        after = size // stride
        source = Source(size, size, channels, stride)
        found += [
            Convolution(n, size, size, channels, inner, 1, 1, 0),
            Convolution(n, size, size, inner, inner, 3, stride, 1),
            Convolution(n, after, after, inner, out, 1, 1, 0, residual=Residual.CONVOLUTION, source=source),
            Convolution(n, after, after, out, inner, 1, 1, 0),
            Convolution(n, after, after, inner, inner, 3, 1, 1),
            Convolution(n, after, after, inner, out, 1, 1, 0, residual=Residual.U4),
        ]
        size, channels = after, out
    last = Convolution(n, 7, 7, 512, 2048, 1, 1, 0, output=Output.U7, residual=Residual.U4)
    return [*found, last]


@pytest.mark.parametrize("n", [1, 3, 1024])
def test_every_convolution_of_a_resnet_has_a_configuration_that_fits(n: int) -> None:
    for conv in [*resnet_convolutions(1), *resnet34_convolutions()]:
        op = op_of(conv)
        op = replace(op, shape=replace(conv, n=n))
        assert default(op, H200).stages >= 3
        for number in range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS)):
            try:
                kernel = WgmmaConv(op, number, H200)
            except EngineError:
                continue
            assert kernel.shared_bytes <= H200.shared_bytes - STATIC_BYTES
            assert kernel.tiles * kernel.config.tile_m >= kernel.conv.pixels
            rows, columns, _ = kernel.grid
            assert columns * kernel.config.tile_n == conv.k
            assert columns <= rows * columns <= max(132, columns)


def test_tiles_of_rows_refuse_what_they_cannot_do() -> None:
    number = {config: FIRST_ROWS + i for i, config in enumerate(ROWS)}
    assert WgmmaRows(op_of(Convolution(2, 56, 56, 64, 64, 3, 1, 1)), number[8, 4], H200).grid == (4, 1, 1)
    with pytest.raises(EngineError, match="stride 1"):
        WgmmaRows(op_of(Convolution(2, 56, 56, 64, 64, 3, 2, 1)), number[8, 4], H200)
    with pytest.raises(EngineError, match="32, 64 or 128"):
        WgmmaRows(op_of(Convolution(2, 14, 14, 256, 256, 3, 1, 1)), number[4, 2], H200)
    with pytest.raises(EngineError, match="no residual"):
        WgmmaRows(op_of(Convolution(2, 56, 56, 64, 64, 3, 1, 1, residual=Residual.U4)), number[8, 4], H200)
    with pytest.raises(EngineError, match="shared memory"):
        WgmmaRows(op_of(Convolution(2, 60, 60, 128, 128, 3, 1, 1)), number[8, 4], H200)


def run(cupy: Any, kernel: Kernel, inputs: dict[str, Any], output: Any) -> Any:
    """What the kernel writes where `output` is now."""
    (found,) = run_all(cupy, kernel, inputs, [output])
    return found


def run_all(cupy: Any, kernel: Kernel, inputs: dict[str, Any], written: list[Any]) -> list[Any]:
    """What the kernel writes to each of its outputs, which hold `written` now: twice, if it has a workspace."""
    source = kernel.source
    file = compile_all([source], H200.arch).files[source]
    function = cupy.RawModule(path=str(file)).get_function(source.function)
    function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    constants = [cupy.asarray(np.frombuffer(array.tobytes() or b"\0", np.uint8).copy()) for array in kernel.constants()]
    names = [tensor.name for tensor in outputs(kernel.op)]
    arrays = inputs | dict(zip(names, written, strict=True))
    device = {name: cupy.asarray(array) for name, array in arrays.items()}
    runs = 1
    if isinstance(kernel, HasWorkspace):
        device[WORKSPACE], runs = cupy.zeros(kernel.workspace_bytes, np.uint8), 2
    addresses = {name: array.data.ptr for name, array in device.items()}
    arguments = kernel.arguments(addresses, [array.data.ptr for array in constants])
    for _ in range(runs):
        function(kernel.grid, (kernel.threads, 1, 1), arguments, shared_mem=kernel.shared_bytes)
    assert WORKSPACE not in device or not device[WORKSPACE].any()
    return [device[name].get() for name in names]


@pytest.fixture
def cupy_hopper(cupy: Any) -> Any:
    capability = cupy.cuda.Device().compute_capability
    if capability != "90":
        pytest.skip(f"needs compute capability 9.0, this GPU has {capability}")
    return cupy


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_equal_to_integers(cupy_hopper: Any, shape: str, n: int) -> None:
    problem, chip = Problem(replace(SHAPES[shape], n=n), draws()), chip_at(cupy_hopper, 0)
    expected, op = problem.expected(), problem.op
    tried = 0
    for number in sorted({default(op, chip).number, *(FIRST_NUMBER + i for i in TRIED)}):
        try:
            kernel = WgmmaConv(op, number, chip)
        except EngineError:
            continue
        tried += 1
        inputs = {"input": problem.input, "residual": problem.residual}
        found = run(cupy_hopper, kernel, inputs, problem.output)
        np.testing.assert_array_equal(found, expected, f"{number}: {kernel}")
    assert tried > 1


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "channels", "number"), [(56, 64, 151), (30, 64, 150), (28, 128, 152)])
def test_tiles_of_rows_equal_to_integers(cupy_hopper: Any, size: int, channels: int, number: int) -> None:
    problem = Problem(Convolution(3, size, size, channels, channels, 3, 1, 1), draws())
    kernel = WgmmaRows(problem.op, number, chip_at(cupy_hopper, 0))
    found = run(cupy_hopper, kernel, {"input": problem.input}, problem.output)
    np.testing.assert_array_equal(found, problem.expected())


@pytest.mark.gpu
@pytest.mark.parametrize("conv", [
    Convolution(3, 56, 56, 64, 64, 3, 1, 1), Convolution(2, 31, 45, 64, 128, 3, 1, 1),
    Convolution(3, 28, 28, 128, 128, 3, 1, 1), Convolution(5, 14, 14, 256, 256, 3, 1, 1),
    Convolution(131, 7, 7, 512, 512, 3, 1, 1), Convolution(2, 9, 13, 128, 256, 3, 1, 1),
], ids=str)  # fmt: skip
def test_winograd_equal_to_integers(cupy_hopper: Any, conv: Convolution) -> None:
    problem, chip = Problem(conv, draws()), chip_at(cupy_hopper, 0)
    expected = problem.expected()
    kernels = [
        kernel for kernel in candidates(problem.op, chip) if isinstance(kernel, (WgmmaWinograd, WgmmaDeepWinograd))
    ]
    assert len(kernels) > 1
    for kernel in kernels:
        found = run(cupy_hopper, kernel, {"input": problem.input}, problem.output)
        np.testing.assert_array_equal(found, expected, f"{kernel.number}: {kernel}")


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "c"), [(56, 64), (27, 128), (13, 256)])
def test_whole_lines_equal_to_integers(cupy_hopper: Any, size: int, c: int) -> None:
    conv = Convolution(3, size, size, c, 4 * c, 1, 1, 0, residual=Residual.U4)
    problem, chip = Problem(conv, draws()), chip_at(cupy_hopper, 0)
    expected, inputs = problem.expected(), {"input": problem.input, "residual": problem.residual}
    kernels = [kernel for kernel in candidates(problem.op, chip) if isinstance(kernel, WgmmaResidual)]
    assert len(kernels) > 2
    for kernel in kernels:
        found = run(cupy_hopper, kernel, inputs, problem.output)
        np.testing.assert_array_equal(found, expected, f"{kernel.number}: {kernel}")


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3, 301])
def test_pools_equal_to_integers(cupy_hopper: Any, n: int) -> None:
    conv = Convolution(n, 7, 7, 512, 2048, 1, 1, 0, Output.U7, Residual.U4)
    problem, chip = PooledProblem(conv, draws()), chip_at(cupy_hopper, 0)
    expected, inputs = problem.expected()["pooled"], {"input": problem.first.input, "residual": problem.first.residual}
    kernels = list(candidates(problem.op, chip))
    assert {type(kernel) for kernel in kernels} == {WgmmaPooled, WgmmaMeans}
    for kernel in kernels:
        found = run(cupy_hopper, kernel, inputs, np.full_like(expected, POISON))
        np.testing.assert_array_equal(found, expected, f"{kernel.number}: {kernel}")


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "classes"), [(1024, 1000), (77, 37)])
def test_linear_equal_to_integers(cupy_hopper: Any, n: int, classes: int) -> None:
    rng = draws()
    weight = rng.integers(-128, 128, (classes, 2048)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, classes).astype(np.int32)
    x = rng.integers(0, 128, (n, 2048)).astype(np.uint8)
    expected = (x.astype(np.int32) @ weight.astype(np.int32).T + bias).astype(np.int32)
    op = LinearOp("fc", "input", "output", n, 2048, weight, bias)
    kernels = list(candidates(op, chip_at(cupy_hopper, 0)))
    assert len(kernels) > 2
    for kernel in kernels:
        found = run(cupy_hopper, kernel, {"input": x}, np.full_like(expected, POISON))
        np.testing.assert_array_equal(found, expected, f"{kernel.number}: {kernel}")


def test_pools_refuse_what_they_cannot_do() -> None:
    taken = Convolution(2, 7, 7, 512, 2048, 1, 1, 0, Output.U7, Residual.U4)
    rng = draws()
    assert WgmmaPooled(PooledProblem(taken, rng).op, 250, H200).grid == (1, 8, 1)
    for conv, why in (
        (replace(taken, output=Output.U4), "to u7"),
        (replace(taken, h=9, w=9), "at most 64"),
        (replace(taken, h=6), "whole images"),
        (replace(taken, c=128), "256 or 512 inputs"),
        (replace(taken, k=384), "multiples of 256"),
    ):
        with pytest.raises(EngineError, match=why):
            WgmmaPooled(PooledProblem(conv, rng).op, 250, H200)


def test_means_refuse_what_they_cannot_do() -> None:
    taken = Convolution(2, 7, 7, 512, 2048, 1, 1, 0, Output.U7, Residual.U4)
    rng = draws()
    kernel = WgmmaMeans(PooledProblem(taken, rng).op, 252, H200)
    assert kernel.grid == (1, 16, 1)
    assert kernel.stages == 5
    assert kernel.workspace_bytes == 2 * 2048 * 2
    for conv, why in (
        (replace(taken, output=Output.U4), "to u7"),
        (replace(taken, h=4, w=4), "of 19 to 129 pixels"),
        (replace(taken, h=12, w=12), "of 19 to 129 pixels"),
        (replace(taken, h=6), "whole images"),
        (replace(taken, c=1024), "two stages"),
        (replace(taken, k=192), "no multiple of tile_n=128"),
    ):
        with pytest.raises(EngineError, match=why):
            WgmmaMeans(PooledProblem(conv, rng).op, 252, H200)
    op = PooledProblem(taken, rng).op
    with pytest.raises(EngineError, match="whole images"):
        WgmmaMeans(replace(op, pool=replace(op.pool, size=6)), 252, H200)


def test_whole_lines_refuse_what_they_cannot_do() -> None:
    taken = Convolution(2, 14, 14, 256, 1024, 1, 1, 0, residual=Residual.U4)
    assert WgmmaResidual(op_of(taken), 191, H200).grid == (2, 4, 1)
    for conv, number, why in (
        (replace(taken, output=Output.U7), 191, "u4 outputs"),
        (replace(taken, residual=Residual.NONE), 191, "there is none"),
        (replace(taken, taps=3, pad=1), 191, "1x1 windows"),
        (replace(taken, c=512), 191, "64, 128, 256 to multiples of 256"),
        (replace(taken, k=768), 195, "to multiples of 512"),
        (taken, 195, "shared memory"),
    ):
        with pytest.raises(EngineError, match=why):
            WgmmaResidual(op_of(conv), number, H200)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(224, 224), (45, 93), (37, 251)])
def test_stems_equal_to_integers(cupy_hopper: Any, size: tuple[int, int]) -> None:
    problem, chip = StemProblem(draws(), 3, size), chip_at(cupy_hopper, 0)
    expected = problem.expected()
    kernels = [kernel for kernel in candidates(problem.op, chip) if kernel.number >= FIRST_WGMMA_STEM]
    assert len({type(kernel) for kernel in kernels}) == 4
    for kernel in kernels:
        found = run(cupy_hopper, kernel, {"input": problem.input}, np.full_like(expected, POISON))
        np.testing.assert_array_equal(found, expected, f"{kernel.number}: {kernel}")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "c", "middle", "k", "convolved"),
    [(56, 64, 256, 64, False), (55, 64, 256, 128, False), (27, 128, 512, 128, False), (56, 64, 256, 64, True),
     (55, 64, 256, 128, True)],
)  # fmt: skip
def test_pairs_equal_to_integers(cupy_hopper: Any, size: int, c: int, middle: int, k: int, convolved: bool) -> None:
    conv = Convolution(3, size, size, c, middle, 1, 1, 0, residual=Residual.U4)
    if convolved:
        conv = replace(conv, residual=Residual.CONVOLUTION, source=Source(size, size, 64, 1))
    problem, chip = PairProblem(conv, k, draws()), chip_at(cupy_hopper, 0)
    expected = problem.expected()
    inputs = {"input": problem.first.input, "residual": problem.first.residual}
    kernels = list(candidates(problem.op, chip))
    assert kernels
    for kernel in kernels:
        written = [np.full_like(array, POISON) for array in expected.values()]
        for found, wanted in zip(run_all(cupy_hopper, kernel, inputs, written), expected.values(), strict=True):
            np.testing.assert_array_equal(found, wanted, f"{kernel.number}: {kernel}")
