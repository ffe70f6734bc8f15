"""Every 4-bit configuration compiles for its chips: no spills, limits kept, native 4-bit products in the main loop.

Chips: sm_75; sm_80, sm_86, sm_87 and sm_89, among which the kinds of layers take turns. Every third configuration is
compiled for a kind, another third for the next, so that each is compiled for two or three of the seven kinds of
ResNet-50; INT4CORE_TEST_ALL=1 compiles all for all, which takes two minutes on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families.conv_mma4 import CONFIGS, FIRST_NUMBER, Mma4Conv, is_native
from int4core.backends.cuda.families.head import Linear, Mean, Top1
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.families.stem_mma import CONFIGS as STEMS
from int4core.backends.cuda.families.stem_mma import FIRST_NUMBER as FIRST_STEM
from int4core.backends.cuda.families.stem_mma import StemConv
from int4core.backends.cuda.jit.nvrtc import Report, compile_source, find_nvrtc
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import ConvOp, LinearOp, Op, PoolOp, StemOp, TopOp
from int4core.errors import EngineError
from int4core.random_model import random_model
from int4core.tuning.static.sass import Listing, disassemble, find_nvdisasm
from tests.kernels.problems import Problem

NVRTC = find_nvrtc()
pytestmark = [
    pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc wheel"),
    pytest.mark.skipif(find_nvdisasm() is None, reason="needs the nvidia-cuda-nvdisasm wheel"),
]

WIDE = Convolution(1, 2, 2, 128, 256, 1, 1, 0)
NARROW = replace(WIDE, c=64)
KINDS = {
    "u4": WIDE,
    "u4 of 64 channels": NARROW,
    "u4 after a residual": replace(WIDE, residual=Residual.U4),
    "u4 of 64 channels after a residual": replace(NARROW, residual=Residual.U4),
    "u7 after a residual": replace(WIDE, residual=Residual.U4, output=Output.U7),
    "u4 after a residual convolution": replace(WIDE, residual=Residual.CONVOLUTION, source=Source(2, 2, 256, 1)),
    "u4 of 64 channels after a residual convolution": replace(
        NARROW, residual=Residual.CONVOLUTION, source=Source(2, 2, 64, 1)
    ),
}
PRODUCTS = {(7, 5): "IMMA.8832.U4.S4", (8, 0): "IMMA.16864.U4.S4"}
EVERY = 1 if os.environ.get("INT4CORE_TEST_ALL") == "1" else 3
REGISTERS = 65536
"""Of a multiprocessor of every chip here."""


def chips_of(number: int, kind: int) -> list[Chip]:
    """t4, or one of the four later architectures: another for each kind, all of them over the kinds."""
    names = ["t4"] if is_native(number, CHIPS["t4"]) else [("a100", "a10", "orin", "l4")[kind % 4]]
    return [CHIPS[name] for name in names]


def compiled(kernels: Sequence[tuple[Kernel, Chip]]) -> Iterator[tuple[Report, Listing]]:
    assert NVRTC is not None
    library = NVRTC

    def compile_one(pair: tuple[Kernel, Chip]) -> tuple[Report, Listing]:
        kernel, chip = pair
        report = compile_source(library, kernel.source, chip.arch, fresh=True)
        return report, disassemble(report.cubin)

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(compile_one, kernels)


@pytest.mark.parametrize("kind", list(KINDS))
def test_configurations_compile_to_native_products(kind: str) -> None:
    op = Problem(KINDS[kind], np.random.default_rng(1)).op
    kernels: list[tuple[Mma4Conv, Chip]] = []
    place = list(KINDS).index(kind)
    for number in range(FIRST_NUMBER + place % EVERY, FIRST_NUMBER + len(CONFIGS), EVERY):
        for chip in chips_of(number, place):
            kernels.append((Mma4Conv(op, number, chip), chip))
    for (kernel, chip), (report, listing) in zip(kernels, compiled(kernels), strict=True):
        name = f"{kernel.number} {kernel} on {chip.name}"
        config = kernel.config
        assert report.spilled == 0, name
        assert report.registers <= 255, name
        assert -(-report.registers // 8) * 8 * kernel.threads * config.blocks <= REGISTERS, name
        assert kernel.shared_bytes <= chip.shared_bytes, name
        loop = listing.part(listing.loop_of("IMMA"))
        products = [instruction.name for instruction in loop if instruction.base == "IMMA"]
        steps = kernel.k_bytes // (16 if config.instruction.rows == 8 else 32)
        expected = config.warp_m // config.instruction.rows * (config.warp_n // 8) * steps
        assert products == [PRODUCTS[config.instruction.capability]] * expected, name
        assert not any(i.base in ("LDL", "STL") for i in listing.instructions), name


def test_64_bit_requantisation_compiles_without_spills() -> None:
    kinds = [kind for kind in KINDS if "64 channels" not in kind]
    kernels: list[tuple[Kernel, Chip]] = []
    for i, number in enumerate(range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS), EVERY)):
        op = Problem(KINDS[kinds[i % len(kinds)]], np.random.default_rng(1), wide=True).op
        kernels += [(Mma4Conv(op, number, chip), chip) for chip in chips_of(number, i)]
    for (kernel, chip), (report, _) in zip(kernels, compiled(kernels), strict=True):
        assert report.spilled == 0, f"{kernel.number} {kernel} on {chip.name}"


def test_the_8_bit_layers_compile_for_turing() -> None:
    t4 = CHIPS["t4"]
    kernels: list[tuple[Kernel, Chip]] = []
    for op in fuse(random_model(width=64, classes=1000).network, 8):
        kernels += [(kernel, t4) for kernel in outer_kernels(op, t4)]
    for (kernel, chip), (report, listing) in zip(kernels, compiled(kernels), strict=True):
        assert report.spilled == 0, f"{kernel} on {chip.name}"
        if isinstance(kernel.op, (StemOp, LinearOp)):
            loop = listing.part(listing.loop_of("IMMA"))
            signs = "S8.S8" if isinstance(kernel.op, StemOp) else "U8.S8"
            assert {i.name for i in loop if i.base == "IMMA"} == {f"IMMA.8816.{signs}"}, str(kernel)
    assert len(kernels) >= 4


def outer_kernels(op: Op, chip: Chip) -> list[Kernel]:
    """The kernels of an operation that is no convolution inside the network."""
    if isinstance(op, ConvOp):
        return []
    if isinstance(op, StemOp):
        found: list[Kernel] = []
        for number in range(FIRST_STEM, FIRST_STEM + len(STEMS)):
            try:
                found.append(StemConv(op, number, chip))
            except EngineError:
                continue
        return found
    if isinstance(op, PoolOp):
        return [Mean(op)]
    if isinstance(op, LinearOp):
        return [Linear(op)]
    assert isinstance(op, TopOp)
    return [Top1(op)]
