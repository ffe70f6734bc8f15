"""The 8-bit convolutions of mma.sync on an emulated GPU, bit for bit against NumPy integers."""

from __future__ import annotations

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.conv_mma import CONFIGS, MmaConv, default
from int4core.errors import EngineError
from tests.kernels.emulator.driver import EAGER, REVERSE, Emulated, needs_compiler
from tests.kernels.problems import Problem, draws
from tests.kernels.test_conv_mma4 import CASES

CHIP = CHIPS["a100"]


@needs_compiler
@pytest.mark.parametrize("case", list(CASES))
def test_emulated_equal_to_integers(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The default one, and another whose turn it is."""
    chosen = CASES[case]
    problem = Problem(chosen.conv, draws(), wide=chosen.wide)
    fitting = []
    for number in range(len(CONFIGS)):
        try:
            fitting.append(MmaConv(problem.op, number, CHIP))
        except EngineError:
            continue
    turn = fitting[list(CASES).index(case) % len(fitting)]
    for kernel in (default(problem.op, CHIP), turn):
        assert kernel.wide == chosen.wide
        emulated = Emulated(kernel.source, tmp_path_factory.getbasetemp())
        expected, constants = problem.expected(), kernel.constants()
        for flags in (0, EAGER | REVERSE):
            arrays = {"input": problem.input, "residual": problem.residual, "output": problem.output}
            tensors = {name: array.ctypes.data for name, array in arrays.items()}
            arguments = kernel.arguments(tensors, [array.ctypes.data for array in constants])
            emulated(kernel.grid, kernel.threads, arguments, flags)
            np.testing.assert_array_equal(arrays["output"], expected, f"{kernel.number}: {kernel}, flags {flags}")
