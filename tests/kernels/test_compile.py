"""Kernels for every chip compile without one: no spills, and registers and shared memory within the chip's limits.

Always run: of every number a kernel for each target it is for, with every residual, output and width of requantisation
among them. All shapes of ResNet-50 for all targets take a quarter of an hour: `make check-all`.
The Hopper convolutions are in test_conv_wgmma_compile.py, the 4-bit ones in test_conv_mma4_compile.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.families.table import candidates, default_kernel
from int4core.backends.cuda.jit.nvrtc import compile_source, find_nvrtc, target, version
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Residual
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import Op, TopOp, joined
from int4core.layers import ResNet
from int4core.model import Model
from int4core.random_model import random_model
from int4core.scores import MAX_K
from tests.int4core.networks import random_network
from tests.paths import ROOT

NVRTC = find_nvrtc()
EVERYTHING = os.environ.get("INT4CORE_TEST_ALL") == "1"
REGISTERS = 65536
ALWAYS_WIDE = ("t4", "a100")
"""Chips for which the kernels with 64-bit requantisation are among those that are always compiled."""

ELSEWHERE = ("conv_wgmma", "rows_wgmma", "conv_mma4")

pytestmark = pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc wheel")


@cache
def networks() -> tuple[ResNet, ...]:
    """The default one, a ResNet-34, two of few channels, and one whose shifts need 64-bit requantisation everywhere."""
    return (
        Model.load(ROOT / "model").network,
        random_model(blocks=(3, 4, 6, 3), width=64, classes=1000, basic=True).network,
        random_network(3, (1, 2, 1, 2), width=32, shift=12, bias=30000),
        random_network(3, (1, 2, 1, 2), width=32, shift=12, bias=30000, basic=True),
        random_network(3, (1, 2, 1, 2), width=32, shift=24, bias=30000),
    )


def kernels(op: Op, chip: Chip) -> Iterator[Kernel]:
    yield from candidates(op, chip)
    if isinstance(op, TopOp):
        yield default_kernel(replace(op, k=MAX_K), chip)


def chosen(chip: Chip) -> dict[KernelSource, Kernel]:
    found: dict[KernelSource, Kernel] = {}
    seen = set()
    for net in networks():
        single = fuse(net, 8)
        for op in (*single, *joined(single)):
            for kernel in kernels(op, chip):
                source = kernel.source
                if source.file.startswith(ELSEWHERE):
                    continue
                constants = dict(source.constants)
                if constants.get("WIDE") and not EVERYTHING and chip.name not in ALWAYS_WIDE:
                    continue
                kind = tuple(constants.get(name) for name in ("RESIDUAL", "OUTPUT", "K_BYTES", "WIDE", "C_IN", "K_OUT"))
                # A number with one kind of epilogue, and a kind with one number.
                keys = {(source.file, kernel.number), (source.file, kind)}
                if EVERYTHING or not keys <= seen:
                    seen |= keys
                    found.setdefault(source, kernel)
    return found


SPILLED = {
    ("conv_mma", 5, Residual.CONVOLUTION, 0): 8,
    ("conv_mma", 5, Residual.CONVOLUTION, 1): 32,
    ("conv_mma", 11, Residual.CONVOLUTION, 1): 8,
    ("conv_mma", 14, Residual.CONVOLUTION, 1): 8,
    **{("stem_mma", number, None, wide): 8 for number in range(200, 204) for wide in (0, 1)},
}
"""Bytes per thread, at the most, by function, number, residual and whether requantised in 64 bits; 0 of others.
The stem on sm_90a alone, where it has routes of its own; no tuned file names one of these convolutions."""


@pytest.mark.parametrize("name", ["t4", "a100", "a10", "l4", "h200"])
def test_compiles_within_the_limits_of_the_chip(name: str) -> None:
    assert NVRTC is not None
    chip = CHIPS[name]
    found = chosen(chip)
    assert len(found) > (8 if name == "t4" else 20)
    assert any(dict(source.constants).get("WIDE") for source in found) == (EVERYTHING or name in ALWAYS_WIDE)
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda source: compile_source(NVRTC, source, chip.arch, fresh=True), found)
        for (source, kernel), report in zip(found.items(), reports, strict=True):
            kind = source.function, kernel.number, *map(dict(source.constants).get, ("RESIDUAL", "WIDE"))
            assert report.spilled <= SPILLED.get(kind, 0), source
            assert "serialized" not in report.log, source  # no wgmma waits for another
            assert report.registers <= min(255, REGISTERS // kernel.threads), source
            assert kernel.shared_bytes <= chip.shared_bytes, source
            assert report.cubin.startswith(b"\x7fELF")


NEWER = ("orin", "b200", "b300", "thor", "rtx5090", "gb10")
"""A chip of each target that has no other test here."""

MOST_SPILLED = 8
"""Bytes per thread: ptxas keeps the stem in strips to 128 registers for sm_100 and sm_110."""


@pytest.mark.parametrize("name", NEWER)
def test_the_default_kernels_compile_for_chips_that_nobody_has_run(name: str) -> None:
    assert NVRTC is not None
    chip = CHIPS[name]
    if target(NVRTC, chip.arch) != chip.arch:
        pytest.skip(f"NVRTC {version(NVRTC)} does not know {chip.arch}")
    found = {kernel.source: kernel for op in fuse(networks()[0], 256) for kernel in [default_kernel(op, chip)]}
    assert len(found) >= 8
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda source: compile_source(NVRTC, source, chip.arch, fresh=True), found)
        for (source, kernel), report in zip(found.items(), reports, strict=True):
            assert report.spilled <= (MOST_SPILLED if source.function == "stem_strips" else 0), source
            assert report.registers <= min(255, REGISTERS // kernel.threads), source
            assert kernel.shared_bytes <= chip.shared_bytes, source
