"""The Hopper kernels on an emulated GPU, bit for bit against NumPy integers.

Each runs with copies and products that are late or at once, and with early or late warps as far ahead as they can be:
see tests/kernels/emulator/hopper.hpp. The chip has few multiprocessors, and no more shared memory than is needed, so
that a block gets several tiles, and goes around its rings of buffers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families.conv_wgmma import WgmmaConv
from int4core.backends.cuda.families.kernel import WORKSPACE, Kernel
from int4core.backends.cuda.families.linear_wgmma import WgmmaLinear
from int4core.backends.cuda.families.means_wgmma import CONFIGS, FIRST_NUMBER, WgmmaMeans
from int4core.backends.cuda.families.pair_wgmma import WgmmaPair
from int4core.backends.cuda.families.pooled_wgmma import WgmmaPooled
from int4core.backends.cuda.families.residual_wgmma import WgmmaResidual
from int4core.backends.cuda.families.rows_wgmma import WgmmaRows
from int4core.backends.cuda.families.stem_dense_wgmma import DenseStem
from int4core.backends.cuda.families.stem_lines_wgmma import LinesStem
from int4core.backends.cuda.families.stem_teams_wgmma import TeamsStem
from int4core.backends.cuda.families.stem_wgmma import WgmmaStem
from int4core.backends.cuda.families.winograd_deep_wgmma import WgmmaDeepWinograd
from int4core.backends.cuda.families.winograd_wgmma import WgmmaWinograd
from int4core.backends.cuda.jit import tensor_map
from int4core.backends.cuda.jit.source import KernelSource, flatten
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.backends.cuda.plan.ops import ConvOp, Limits, LinearOp
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.errors import EngineError
from tests.kernels.emulator.driver import EAGER, PROMPT, REVERSE, Emulated, emulated_driver, needs_compiler
from tests.kernels.problems import MOST_UP, PairProblem, PooledProblem, Problem, draws
from tests.kernels.stems import StemProblem

LONG = pytest.mark.skipif(os.environ.get("INT4CORE_TEST_ALL") != "1", reason="like others: make check-all")

ORDERS = (0, EAGER, EAGER | REVERSE, PROMPT | REVERSE)


@dataclass(frozen=True)
class Case:
    conv: Convolution
    number: int
    multiprocessors: int = 1


CASES = {
    "1x1, several tiles": Case(Convolution(2, 19, 37, 64, 64, 1, 1, 0), 101),
    "1x1 of 96 channels, n256": Case(Convolution(1, 9, 17, 96, 256, 1, 1, 0), 103),
    "3x3, streamed": Case(Convolution(2, 9, 11, 128, 128, 3, 1, 1), 105),
    "3x3 stride 2, two images": Case(Convolution(2, 13, 15, 64, 128, 3, 2, 1), 108, 2),
    "residual": Case(Convolution(1, 15, 17, 64, 128, 1, 1, 0, residual=Residual.U4), 102),
    "residual to u7": Case(Convolution(2, 7, 7, 128, 128, 1, 1, 0, Output.U7, Residual.U4), 111),
    "residual convolution": Case(
        Convolution(1, 9, 13, 128, 64, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(17, 26, 256, 2)), 109
    ),
    "residual convolution, streamed": Case(
        Convolution(1, 9, 13, 64, 128, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(9, 13, 64, 1)), 105
    ),
    # The end of a basic block; the same kernels as the three above with a residual.
    "3x3 and residual": Case(Convolution(2, 9, 11, 64, 128, 3, 1, 1, residual=Residual.U4), 102),
    "3x3 and residual to u7": Case(Convolution(2, 7, 7, 128, 128, 3, 1, 1, Output.U7, Residual.U4), 111),
    "3x3 and residual convolution, streamed": Case(
        Convolution(2, 7, 9, 128, 128, 3, 1, 1, residual=Residual.CONVOLUTION, source=Source(13, 17, 64, 2)), 105
    ),
}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where libraries lie, with tensor maps for the emulator."""
    base = tmp_path_factory.getbasetemp()
    driver = emulated_driver(base)
    monkeypatch.setattr(tensor_map, "load_driver", lambda: driver)
    return base


K = TypeVar("K")


def tight(make: Callable[[Chip], K], multiprocessors: int = 1) -> K:
    """The kernel on the smallest chip that has room for it."""
    for kib in range(24, 228):
        try:
            return make(replace(CHIPS["h200"], multiprocessors=multiprocessors, shared_bytes=kib << 10))
        except EngineError:
            continue
    raise AssertionError("no chip has room for it")


def check(kernel: Kernel, emulated: Emulated, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """`outputs`: what each tensor must hold after a run."""
    constants = [np.ascontiguousarray(array) for array in kernel.constants()]
    for flags in ORDERS:
        written = {name: np.full_like(array, 0xA5) for name, array in outputs.items()}
        tensors = {name: array.ctypes.data for name, array in (inputs | written).items()}
        arguments = kernel.arguments(tensors, [array.ctypes.data for array in constants])
        emulated(kernel.grid, kernel.threads, arguments, flags, kernel.shared_bytes)
        for name, array in outputs.items():
            np.testing.assert_array_equal(written[name], array, f"{kernel.number}: {kernel}, {name}, flags {flags}")


def branched(saturated: bool, shift: int, conv: Convolution) -> tuple[Problem, ConvOp]:
    """With `shift` in the residual convolution's second requantisation, and a first one that saturates or does not."""
    rng = draws()
    problem = Problem(conv, rng)
    assert problem.branch is not None
    most = min(MOST_UP << shift, 1 << 16)
    up = Rescale(np.append(most - 1, rng.integers(0, most, conv.k - 1)).astype(np.uint16), shift)
    down, bias = problem.branch.down, problem.branch.bias
    if saturated:
        down, bias = Rescale(rng.integers(1000, 6000, conv.k).astype(np.uint16), 16), (bias // 8).astype(np.int16)
    else:
        down.factor[-1], bias[-1] = WITHOUT_LINE
    problem.branch = replace(problem.branch, up=up, down=down, bias=bias)
    reach = 128 * most >> shift
    limits = Limits.of(problem.weight, problem.bias, 0, 15) + Limits(-reach, reach)
    return problem, replace(problem.op, limits=limits)


WITHOUT_LINE = 65205, -1641
"""Factor and bias of a channel that has no saturating line."""

BRANCHES = [(False, 2), (True, 0), (True, 3), (True, 16)]
"""What `branched` is given."""


@needs_compiler
@pytest.mark.parametrize(("saturated", "shift"), BRANCHES)
def test_a_residual_convolution_is_rescaled(saturated: bool, shift: int, folder: Any) -> None:
    conv = Convolution(1, 9, 13, 64, 128, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(9, 13, 64, 1))
    problem, op = branched(saturated, shift, conv)
    kernel = tight(lambda chip: WgmmaConv(op, 105, chip))
    assert dict(kernel.source.constants)["SATURATED"] == saturated
    inputs = {"input": problem.input, "residual": problem.residual}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, {"output": problem.expected()})


@needs_compiler
@pytest.mark.parametrize(("saturated", "shift"), BRANCHES)
def test_so_it_is_in_a_pair(saturated: bool, shift: int, folder: Any) -> None:
    conv = Convolution(1, 19, 21, 64, 256, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(19, 21, 64, 1))
    pair = PairProblem(conv, 64, draws())
    pair.first, first = branched(saturated, shift, conv)
    pair.second.input = pair.first.expected()
    op = replace(pair.op, first=replace(first, target="wide"))
    kernel = tight(lambda chip: WgmmaPair(op, 161, chip))
    assert dict(kernel.source.constants)["SATURATED"] == saturated
    inputs = {"input": pair.first.input, "residual": pair.first.residual}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, pair.expected())


@needs_compiler
@pytest.mark.parametrize("case", list(CASES))
def test_convolutions(case: str, folder: Any) -> None:
    chosen = CASES[case]
    problem = Problem(chosen.conv, draws())
    kernel = tight(lambda chip: WgmmaConv(problem.op, chosen.number, chip), chosen.multiprocessors)
    assert kernel.stages == 2
    inputs = {"input": problem.input, "residual": problem.residual}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, {"output": problem.expected()})


@needs_compiler
@pytest.mark.parametrize(("number", "conv"), [
    (153, Convolution(2, 11, 30, 64, 64, 3, 1, 1)),
    (154, Convolution(2, 7, 9, 128, 128, 3, 1, 1)),
])  # fmt: skip
def test_tiles_of_rows(number: int, conv: Convolution, folder: Any) -> None:
    problem = Problem(conv, draws())
    kernel = tight(lambda chip: WgmmaRows(problem.op, number, chip))
    check(kernel, Emulated(kernel.source, folder, 900), {"input": problem.input}, {"output": problem.expected()})


@needs_compiler
def test_stem(folder: Any) -> None:
    problem = StemProblem(draws(), 2, (22, 61))
    kernel = WgmmaStem(problem.op, 233, CHIPS["h200"])
    check(kernel, Emulated(kernel.source, folder, 900), {"input": problem.input}, {"maxpool": problem.expected()})


@needs_compiler
@pytest.mark.parametrize(
    ("number", "size", "window"),
    [
        (243, (45, 224), (7, 7, 3)),
        (244, (31, 93), (7, 7, 3)),
        (244, (19, 251), (3, 4, 4)),
    ],
    ids=["224 columns", "an odd number of columns", "rows of 128"],
)
def test_stem_with_weights_as_a(number: int, size: tuple[int, int], window: tuple[int, int, int], folder: Any) -> None:
    problem = StemProblem(draws(), 2, size, window=window[:2], padding=(window[2], window[2]))
    kernel = LinesStem(problem.op, number, CHIPS["h200"])
    check(kernel, Emulated(kernel.source, folder, 900), {"input": problem.input}, {"maxpool": problem.expected()})


@needs_compiler
@pytest.mark.parametrize(
    ("make", "number", "n", "size", "window"),
    [
        (TeamsStem, 246, 2, (61, 224), (7, 7, 3)),
        pytest.param(TeamsStem, 245, 3, (31, 93), (7, 7, 3), marks=LONG),
        (TeamsStem, 245, 3, (19, 251), (3, 4, 4)),
        (DenseStem, 249, 2, (45, 224), (7, 7, 3)),
        (DenseStem, 247, 1, (31, 93), (7, 7, 3)),
        pytest.param(DenseStem, 249, 3, (37, 251), (3, 4, 4), marks=LONG),
        pytest.param(DenseStem, 248, 3, (23, 128), (5, 5, 1), marks=LONG),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_stem_in_teams(
    make: type[TeamsStem], number: int, n: int, size: tuple[int, int], window: tuple[int, int, int], folder: Any
) -> None:
    problem = StemProblem(draws(), n, size, window=window[:2], padding=(window[2], window[2]))
    kernel = make(problem.op, number, replace(CHIPS["h200"], multiprocessors=1))
    check(kernel, Emulated(kernel.source, folder, 900), {"input": problem.input}, {"maxpool": problem.expected()})


PAIRS = {
    "layer1's, a tile's remainder": (160, Convolution(1, 23, 29, 64, 256, 1, 1, 0, residual=Residual.U4), 64),
    "layer1's to 128": (161, Convolution(2, 13, 23, 64, 256, 1, 1, 0, residual=Residual.U4), 128),
    "layer2's": (163, Convolution(3, 9, 11, 128, 512, 1, 1, 0, residual=Residual.U4), 128),
    "tiles of 192 pixels": (167, Convolution(1, 31, 29, 64, 256, 1, 1, 0, residual=Residual.U4), 64),
    "a residual convolution": (
        162,
        Convolution(1, 23, 29, 64, 256, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(23, 29, 64, 1)),
        64,
    ),
    "a residual convolution, three teams, to 128": (
        166,
        Convolution(2, 15, 17, 64, 256, 1, 1, 0, residual=Residual.CONVOLUTION, source=Source(15, 17, 128, 1)),
        128,
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", list(PAIRS))
def test_pairs(name: str, folder: Any) -> None:
    number, conv, k = PAIRS[name]
    problem = PairProblem(conv, k, draws())
    kernel = tight(lambda chip: WgmmaPair(problem.op, number, chip))
    assert kernel.slots == 2 < kernel.tiles / kernel.config.teams
    inputs = {"input": problem.first.input, "residual": problem.first.residual}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, problem.expected())


LINES = {
    "layer2's, a tile's remainder": (191, Convolution(1, 23, 29, 128, 256, 1, 1, 0, residual=Residual.U4)),
    "layer3's, two parts, three teams": (193, Convolution(3, 11, 15, 256, 512, 1, 1, 0, residual=Residual.U4)),
    "tiles of 256 pixels": (197, Convolution(1, 41, 37, 64, 256, 1, 1, 0, residual=Residual.U4)),
    "tiles of 192 pixels": (198, Convolution(1, 35, 29, 128, 256, 1, 1, 0, residual=Residual.U4)),
    "two boxes": (195, Convolution(7, 7, 7, 64, 512, 1, 1, 0, residual=Residual.U4)),
}


@needs_compiler
@pytest.mark.parametrize("name", list(LINES))
def test_whole_lines(name: str, folder: Any) -> None:
    number, conv = LINES[name]
    problem = Problem(conv, draws())
    kernel = tight(lambda chip: WgmmaResidual(problem.op, number, chip))
    assert kernel.slots == 2 < kernel.tiles / kernel.config.teams
    inputs = {"input": problem.input, "residual": problem.residual}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, {"output": problem.expected()})


@needs_compiler
@pytest.mark.parametrize(("number", "n", "features"), [(260, 67, 640), (261, 130, 384)])
def test_linear(number: int, n: int, features: int, folder: Any) -> None:
    """An odd number of slots' features, and more of them than slots; rows and classes that fill no tile."""
    rng = draws()
    weight = rng.integers(-128, 128, (70, features)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, 70).astype(np.int32)
    x = rng.integers(0, 128, (n, features)).astype(np.uint8)
    op = LinearOp("fc", "input", "output", n, features, weight, bias)
    kernel = tight(lambda chip: WgmmaLinear(op, number, chip))
    assert kernel.slots == 2 < features // 128
    expected = (x.astype(np.int32) @ weight.astype(np.int32).T + bias).astype(np.int32)
    check(kernel, Emulated(kernel.source, folder, 900), {"input": x}, {"output": expected})


@needs_compiler
@pytest.mark.parametrize(
    ("number", "conv"),
    [
        (250, Convolution(7, 7, 7, 512, 256, 1, 1, 0, Output.U7, Residual.U4)),
        (251, Convolution(6, 8, 8, 256, 512, 1, 1, 0, Output.U7, Residual.U4)),
    ],
    ids=["7x7", "8x8, two parts"],
)
def test_pools(number: int, conv: Convolution, folder: Any) -> None:
    problem = PooledProblem(conv, draws())
    kernel = tight(lambda chip: WgmmaPooled(problem.op, number, chip))
    assert kernel.slots == 2 < conv.n / kernel.config.teams
    inputs = {"input": problem.first.input, "residual": problem.first.residual}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, problem.expected())


MEANS = {
    "three images, two parts": (252, Convolution(3, 7, 7, 128, 256, 1, 1, 0, Output.U7, Residual.U4)),
    "more tiles than a team has slots": (253, Convolution(25, 7, 7, 64, 128, 1, 1, 0, Output.U7, Residual.U4)),
    "one image, less than a tile": (252, Convolution(1, 7, 7, 64, 128, 1, 1, 0, Output.U7, Residual.U4)),
    "an image is half a tile": (252, Convolution(5, 8, 8, 64, 128, 1, 1, 0, Output.U7, Residual.U4)),
    "the largest, over two tiles and three": (252, Convolution(5, 11, 11, 64, 128, 1, 1, 0, Output.U7, Residual.U4)),
    "four images a tile": (253, Convolution(11, 7, 7, 64, 128, 1, 1, 0, Output.U7, Residual.U4)),
    "small images, seven a tile": (252, Convolution(21, 5, 5, 64, 128, 1, 1, 0, Output.U7, Residual.U4)),
    "256 channels": (254, Convolution(9, 7, 7, 128, 256, 1, 1, 0, Output.U7, Residual.U4)),
    "256 channels, two parts": (255, Convolution(4, 9, 9, 64, 512, 1, 1, 0, Output.U7, Residual.U4)),
    "256 channels, four images a tile": (255, Convolution(11, 5, 5, 64, 256, 1, 1, 0, Output.U7, Residual.U4)),
    "the end of a basic block": (252, Convolution(4, 7, 7, 64, 128, 3, 1, 1, Output.U7, Residual.U4)),
}


@needs_compiler
@pytest.mark.parametrize("name", list(MEANS))
def test_means(name: str, folder: Any) -> None:
    """Run after run on the same workspace, which must be zero after each."""
    number, conv = MEANS[name]
    problem = PooledProblem(conv, draws())
    kernel = tight(
        lambda chip: WgmmaMeans(problem.op, number, chip), 2 * conv.k // CONFIGS[number - FIRST_NUMBER].tile_n
    )
    assert kernel.stages == 2
    workspace = np.zeros(kernel.workspace_bytes // 8, np.uint64)
    inputs = {"input": problem.first.input, "residual": problem.first.residual, WORKSPACE: workspace}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, problem.expected())
    assert not workspace.any()


@needs_compiler
@pytest.mark.parametrize("value", [0, 127])
def test_means_of_the_least_and_the_most(value: int, folder: Any) -> None:
    """Four sums of the largest image, each as large as can be, lie beside one another in a word."""
    problem = PooledProblem(Convolution(3, 11, 11, 64, 128, 1, 1, 0, Output.U7, Residual.U4), draws())
    first = problem.first
    first.weight[:], first.bias[:] = (7, 3000) if value else (-8, -3000)
    first.rescale, first.kept = Rescale(np.full(128, 40_000, np.uint16), 16), Rescale(np.zeros(128, np.uint16), 1)
    expected = problem.expected()
    assert (expected["pooled"] == value).all()
    kernel = tight(lambda chip: WgmmaMeans(problem.op, 252, chip))
    workspace = np.zeros(kernel.workspace_bytes // 8, np.uint64)
    inputs = {"input": first.input, "residual": first.residual, WORKSPACE: workspace}
    check(kernel, Emulated(kernel.source, folder, 900), inputs, expected)
    assert not workspace.any()


@needs_compiler
@pytest.mark.parametrize(
    ("number", "conv"),
    [
        (170, Convolution(1, 18, 56, 64, 64, 3, 1, 1)),
        (171, Convolution(2, 9, 31, 64, 128, 3, 1, 1)),
        (172, Convolution(1, 18, 56, 64, 64, 3, 1, 1)),
        (173, Convolution(3, 7, 26, 64, 64, 3, 1, 1)),
    ],
    ids=["56 columns", "an odd width, two parts", "ahead", "ahead, an odd number of units"],
)
def test_winograd(number: int, conv: Convolution, folder: Any) -> None:
    problem = Problem(conv, draws())
    kernel = tight(lambda chip: WgmmaWinograd(problem.op, number, chip), conv.k // 64)
    assert kernel.buffers == 2
    check(kernel, Emulated(kernel.source, folder, 900), {"input": problem.input}, {"output": problem.expected()})


@needs_compiler
@pytest.mark.parametrize(
    ("number", "conv", "multiprocessors"),
    [
        (185, Convolution(6, 7, 13, 256, 128, 3, 1, 1), 1),
        (187, Convolution(2, 7, 28, 128, 128, 3, 1, 1), 1),
        pytest.param(180, Convolution(1, 28, 28, 128, 128, 3, 1, 1), 1, marks=LONG),
        pytest.param(184, Convolution(3, 14, 14, 256, 256, 3, 1, 1), 2, marks=LONG),
        pytest.param(181, Convolution(11, 7, 7, 512, 128, 3, 1, 1), 1, marks=LONG),
        pytest.param(182, Convolution(3, 5, 15, 128, 256, 3, 1, 1), 2, marks=LONG),
    ],
    ids=["an odd width, staggered", "weights resident, staggered", "layer2's", "layer3's", "layer4's", "in two parts"],
)
def test_winograd_of_deep_layers(number: int, conv: Convolution, multiprocessors: int, folder: Any) -> None:
    rng = draws()
    problem = Problem(conv, rng)
    kernel = tight(lambda chip: WgmmaDeepWinograd(problem.op, number, chip), multiprocessors)
    assert kernel.room.slots == kernel.k_blocks
    emulated = Emulated(kernel.source, folder, 900)
    check(kernel, emulated, {"input": problem.input}, {"output": problem.expected()})
    # The least and the most that V and U can be.
    problem.weight = rng.choice([-8, 7], problem.weight.shape).astype(np.int8)
    problem.input = rng.choice([0, 15, 240, 255], problem.input.shape).astype(np.uint8)
    check(replace(kernel, op=problem.op), emulated, {"input": problem.input}, {"output": problem.expected()})


FAULTS = {
    "sums read before they are there": ("wgmma_wait<0>();", "wgmma_wait<1>();"),
    "a buffer given back before its products are done": ("wgmma_wait<1>();", ""),
    "a buffer read before it is filled": ("mbarrier_wait(full + 8 * ring.slot, ring.parity);", ""),
}


def faulty(source: KernelSource, right: str, wrong: str, folder: Path) -> Emulated:
    text = flatten(source.file)
    assert right in text
    file = folder / "faulty.cu"
    file.write_text(text.replace(right, wrong))
    return Emulated(replace(source, file=str(file)), folder, 900)


@needs_compiler
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_emulator_sees_what_goes_wrong_on_a_gpu(fault: str, folder: Any, tmp_path: Path) -> None:
    problem = Problem(Convolution(2, 9, 11, 128, 64, 3, 1, 1), draws())
    kernel = tight(lambda chip: WgmmaConv(problem.op, 108, chip))
    emulated = faulty(kernel.source, *FAULTS[fault], tmp_path)
    with pytest.raises(AssertionError):
        check(kernel, emulated, {"input": problem.input}, {"output": problem.expected()})


MEANS_FAULTS = {
    "outputs added up before they are there": ("mbarrier_wait(full, parity);", ""),
    "outputs in the place of those that are not added up": (
        "mbarrier_wait(outputs_empty(team), shared_parity ^ 1);",
        "",
    ),
    "sums of the run before": ("if (rows < IMAGE) partial[first + part * (TILE_N / 16)] = 0;", ""),
}


@needs_compiler
@pytest.mark.parametrize("fault", list(MEANS_FAULTS))
def test_so_it_does_of_means(fault: str, folder: Any, tmp_path: Path) -> None:
    problem = PooledProblem(Convolution(25, 7, 7, 64, 128, 1, 1, 0, Output.U7, Residual.U4), draws())
    kernel = tight(lambda chip: WgmmaMeans(problem.op, 252, chip))
    inputs = {"input": problem.first.input, "residual": problem.first.residual}
    inputs[WORKSPACE] = np.zeros(kernel.workspace_bytes // 8, np.uint64)
    emulated = faulty(kernel.source, *MEANS_FAULTS[fault], tmp_path)
    with pytest.raises(AssertionError):
        check(kernel, emulated, inputs, problem.expected())


@needs_compiler
def test_the_emulator_sees_a_missing_fence(folder: Any, tmp_path: Path) -> None:
    problem = StemProblem(draws(), 1, (16, 40))
    kernel = WgmmaStem(problem.op, 234, CHIPS["h200"])
    fence = 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma'
    emulated = faulty(kernel.source, fence, "//", tmp_path)
    with pytest.raises(AssertionError):
        check(kernel, emulated, {"input": problem.input}, {"maxpool": problem.expected()})
