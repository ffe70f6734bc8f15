"""The 4-bit convolutions, bit for bit against NumPy integers: on a CPU, where threads are emulated, and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.device import chip_at
from int4core.backends.cuda.families.conv_mma4 import CONFIGS, FIRST_NUMBER, Mma4Conv, default, is_native
from int4core.backends.cuda.families.layouts import arrange_mma4, pack
from int4core.backends.cuda.jit.compiler import compile_all
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.errors import EngineError
from tests.kernels.emulator.driver import EAGER, REVERSE, Emulated, needs_compiler
from tests.kernels.problems import Problem, draws, resnet34_convolutions, resnet50_convolutions


@dataclass(frozen=True)
class Case:
    conv: Convolution
    numbers: tuple[int, int]
    """A configuration of Turing and one of Ampere and Ada."""
    wide: bool = False


CASES = {
    "1x1": Case(Convolution(2, 5, 7, 128, 64, 1, 1, 0), (309, 322)),
    "1x1 of 64 channels": Case(Convolution(1, 9, 9, 64, 128, 1, 1, 0), (308, 320)),
    "1x1 of 96 channels": Case(Convolution(1, 7, 5, 96, 32, 1, 1, 0), (312, 325)),
    "3x3": Case(Convolution(1, 6, 5, 128, 64, 3, 1, 1), (310, 323)),
    "3x3 stride 2, two images": Case(Convolution(2, 7, 9, 64, 128, 3, 2, 1), (300, 313)),
    "residual": Case(Convolution(1, 5, 5, 64, 128, 1, 1, 0, residual=Residual.U4), (305, 318)),
    "residual to u7": Case(Convolution(1, 7, 7, 64, 64, 1, 1, 0, Output.U7, Residual.U4), (306, 319)),
    "residual convolution": Case(
        Convolution(1, 5, 4, 128, 64, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(10, 8, 256, 2)),
        (307, 324),
    ),
    "residual convolution, 64 bits": Case(
        Convolution(1, 5, 4, 64, 32, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(5, 4, 64, 1)),
        (311, 325), wide=True,
    ),
    "3x3 and residual": Case(Convolution(2, 5, 4, 128, 128, 3, 1, 1, residual=Residual.U4), (308, 321)),
    "3x3 and residual convolution to u7": Case(
        Convolution(2, 4, 5, 64, 64, 3, 1, 1, Output.U7, Residual.CONVOLUTION, Source(8, 9, 32, 2)), (306, 322)
    ),
    "residual, 64 bits": Case(
        Convolution(1, 3, 3, 64, 64, 3, 1, 1, Output.U7, Residual.U4), (310, 323), wide=True
    ),
}  # fmt: skip


def chip_of(number: int) -> Chip:
    """One that has the tensor cores of the entry."""
    return next(chip for name in ("t4", "l4") if is_native(number, chip := CHIPS[name]))


@needs_compiler
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("generation", [0, 1], ids=["turing", "ampere"])
def test_emulated_equal_to_integers(case: str, generation: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    chosen = CASES[case]
    problem = Problem(chosen.conv, draws(), wide=chosen.wide)
    number = chosen.numbers[generation]
    kernel = Mma4Conv(problem.op, number, chip_of(number))
    assert kernel.wide == chosen.wide
    emulated = Emulated(kernel.source, tmp_path_factory.getbasetemp())
    expected, constants = problem.expected(), kernel.constants()
    for flags in (0, EAGER | REVERSE):
        arrays = {"input": problem.input, "residual": problem.residual, "output": problem.output}
        tensors = {name: array.ctypes.data for name, array in arrays.items()}
        arguments = kernel.arguments(tensors, [array.ctypes.data for array in constants])
        emulated(kernel.grid, kernel.threads, arguments, flags)
        np.testing.assert_array_equal(arrays["output"], expected, f"{number}: {kernel}, flags {flags}")


def test_weights_lie_where_the_instruction_reads_them() -> None:
    """Place by place, after mma_u4s4.cuh: the operands of lane 4 * group + quad."""
    weight = draws().integers(-8, 8, (128, 256, 1, 1)).astype(np.int8)
    for warps_n, warp_n, k_bytes in ((2, 64, 64), (4, 32, 32), (1, 64, 16)):
        packed = arrange_mma4(weight, warps_n, warp_n, k_bytes)
        words = k_bytes // 16
        step_words = min(words, 2)
        assert packed.shape == (128 // (warps_n * warp_n), 256 // (2 * k_bytes), warps_n * warp_n * k_bytes)
        rng = draws()
        for _ in range(200):
            tile, block = (int(rng.integers(size)) for size in packed.shape[:2])
            step, warp = int(rng.integers(words // step_words)), int(rng.integers(warps_n))
            j, group, quad = int(rng.integers(warp_n // 8)), int(rng.integers(8)), int(rng.integers(4))
            word, nibble = int(rng.integers(step_words)), int(rng.integers(8))
            lane_bytes = 8 * step_words
            at = (((step * warps_n + warp) * (warp_n // 16) + j // 2) * 32 + group * 4 + quad) * lane_bytes
            at += (j % 2 * step_words + word) * 4 + nibble // 2
            raw = int(packed[tile, block, at]) >> (4 * (nibble % 2)) & 15
            # Column `group` of tile j is what lane group / 2 holds as its output 2 * j + group % 2.
            channel = (tile * warps_n + warp) * warp_n + group // 2 * (warp_n // 4) + 2 * j + group % 2
            place = block * 2 * k_bytes + 32 * (step * step_words + word) + 8 * quad + nibble
            assert (raw ^ 8) - 8 == weight[channel, place, 0, 0]


def test_packing_is_twos_complement() -> None:
    np.testing.assert_array_equal(pack(np.array([-8, 7, -1, 0, 3, -3], np.int8)), [0x78, 0x0F, 0xD3])


def test_weights_of_8_bits_are_refused_with_the_reason() -> None:
    problem = Problem(CASES["1x1"].conv, draws())
    problem.weight[3, 5] = -9
    with pytest.raises(EngineError, match=r"-9 to 7: 4-bit tensor cores take -8 to 7"):
        Mma4Conv(problem.op, FIRST_NUMBER + 9, CHIPS["t4"])
    with pytest.raises(EngineError, match="4-bit tensor cores take"):
        default(problem.op, CHIPS["a100"])


def test_chips_take_what_they_have() -> None:
    op = Problem(CASES["1x1"].conv, draws()).op
    for name in ("t4", "titan_rtx", "a100", "a10", "l4", "l40s"):
        chip = CHIPS[name]
        chosen = default(op, chip)
        assert is_native(chosen.number, chip)
        assert chosen.shared_bytes <= chip.shared_bytes
    with pytest.raises(EngineError, match=r"7\.5: m16n8k64 needs 8\.0"):
        Mma4Conv(op, 313, CHIPS["t4"])
    with pytest.raises(EngineError, match="no 4-bit tensor cores"):
        default(op, CHIPS["h200"])
    assert not any(is_native(FIRST_NUMBER + i, CHIPS["h200"]) for i in range(len(CONFIGS)))


@pytest.mark.gpu
@pytest.mark.parametrize("conv", [*resnet50_convolutions(), *resnet34_convolutions()], ids=str)
def test_every_configuration_equal_to_integers(cupy: Any, conv: Convolution) -> None:
    """All of ResNet-50's shapes and ResNet-34's, for 1, 3 and 16 images.

    Where the chip has no such tensor cores, by emulation.
    """
    chip = chip_at(cupy, 0)
    problem = Problem(replace(conv, n=16), draws())
    expected, op = problem.expected(), problem.op
    kernels = []
    for n in (1, 3, 16):
        for number in range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS)):
            try:
                kernels.append(Mma4Conv(replace(op, shape=replace(conv, n=n)), number, chip))
            except EngineError:
                continue
    assert len(kernels) >= 3 * 10
    files = compile_all({kernel.source for kernel in kernels}, chip.arch).files
    source, residual = cupy.asarray(problem.input), cupy.asarray(problem.residual)
    for kernel in kernels:
        n = kernel.conv.n
        function = cupy.RawModule(path=str(files[kernel.source])).get_function(kernel.source.function)
        function.max_dynamic_shared_size_bytes = kernel.shared_bytes
        constants = [cupy.asarray(np.ascontiguousarray(array).view(np.uint8).ravel()) for array in kernel.constants()]
        output = cupy.asarray(problem.output[:n])
        tensors = {"input": source.data.ptr, "residual": residual.data.ptr, "output": output.data.ptr}
        arguments = kernel.arguments(tensors, [array.data.ptr for array in constants])
        function(kernel.grid, (kernel.threads, 1, 1), arguments, shared_mem=kernel.shared_bytes)
        np.testing.assert_array_equal(output.get(), expected[:n], f"{n} images, {kernel.number}: {kernel}")
