"""The convolutions with K in slices on an emulated GPU, bit for bit against NumPy integers."""

from __future__ import annotations

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.conv_slices import FIRST_NUMBER, SlicedConv, default
from int4core.backends.cuda.plan.convolution import Convolution
from int4core.errors import EngineError
from tests.kernels.emulator.driver import EAGER, REVERSE, Emulated, needs_compiler
from tests.kernels.problems import Problem, draws
from tests.kernels.test_conv_mma4 import CASES

CHIP = CHIPS["h100"]


NUMBERS = {
    "1x1 of 96 channels": 282,
    "3x3": 284,
    "3x3 stride 2, two images": 285,
    "residual to u7": 283,
    "3x3 and residual convolution to u7": 287,
    "residual convolution": 281,
    "residual, 64 bits": 280,
    "3x3 and residual": 288,
    "residual convolution, 64 bits": 282,
}
"""Every kind of epilogue and of residual; one slice, as many as there are blocks of K, and what lies between."""


@needs_compiler
@pytest.mark.parametrize("case", list(NUMBERS))
def test_emulated_equal_to_integers(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    chosen = CASES[case]
    problem = Problem(chosen.conv, draws(), wide=chosen.wide)
    kernel = SlicedConv(problem.op, NUMBERS[case], CHIP)
    assert kernel.wide == chosen.wide
    emulated = Emulated(kernel.source, tmp_path_factory.getbasetemp(), arch=900)
    expected, constants = problem.expected(), kernel.constants()
    for flags in (0, EAGER | REVERSE):
        arrays = {"input": problem.input, "residual": problem.residual, "output": problem.output}
        tensors = {name: array.ctypes.data for name, array in arrays.items()}
        arguments = kernel.arguments(tensors, [array.ctypes.data for array in constants])
        emulated(kernel.grid, kernel.threads, arguments, flags, kernel.shared_bytes)
        np.testing.assert_array_equal(arrays["output"], expected, f"{kernel.number}: {kernel}, flags {flags}")


def test_a_slice_has_something_to_do() -> None:
    op = Problem(Convolution(1, 4, 4, 64, 64, 1, 1, 0), draws()).op
    assert default(op, CHIP).config.slices == 1
    with pytest.raises(EngineError, match="8 slices of K, m16 n32: 64 places of K are 1 blocks"):
        SlicedConv(op, FIRST_NUMBER, CHIP)
