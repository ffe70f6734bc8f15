"""Every Hopper configuration compiles without spills, and keeps wgmma asynchronous; no GPU needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.conv_wgmma import CONFIGS, FIRST_NUMBER, WgmmaConv
from int4core.backends.cuda.families.means_wgmma import CONFIGS as MEANS
from int4core.backends.cuda.families.means_wgmma import FIRST_NUMBER as FIRST_MEANS
from int4core.backends.cuda.families.means_wgmma import WgmmaMeans
from int4core.backends.cuda.families.rows_wgmma import WgmmaRows
from int4core.backends.cuda.jit.nvrtc import compile_source, find_nvrtc
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.errors import EngineError
from tests.kernels.problems import PooledProblem, Problem

NVRTC = find_nvrtc()
needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc wheel")

WIDE = Convolution(8, 14, 14, 256, 1024, 1, 1, 0)
EPILOGUES = {
    "u4": WIDE,
    "u4 after a residual": replace(WIDE, residual=Residual.U4),
    "u7 after a residual": replace(WIDE, residual=Residual.U4, output=Output.U7),
    "u4 after a residual convolution": replace(WIDE, residual=Residual.CONVOLUTION, source=Source(28, 28, 512, 2)),
}


def sources(epilogue: str) -> list[KernelSource]:
    """Those of every configuration that takes the epilogue: 64 and 128 channels a block of K."""
    found = []
    for number in range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS)):
        conv = EPILOGUES[epilogue]
        if number % 2:
            conv = replace(conv, c=64, source=replace(conv.source, c=64) if conv.source else None)
        try:
            found.append(WgmmaConv(Problem(conv, np.random.default_rng(0)).op, number, CHIPS["h200"]).source)
        except EngineError:
            continue
    return found


@needs_nvrtc
@pytest.mark.parametrize("epilogue", list(EPILOGUES))
def test_configurations_compile_without_spills(epilogue: str) -> None:
    assert NVRTC is not None
    chosen = sources(epilogue)
    assert len(chosen) >= len(CONFIGS) // 2
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda source: compile_source(NVRTC, source, "sm_90a", fresh=True), chosen)
        for source, report in zip(chosen, reports, strict=True):
            assert report.spilled == 0, source
            assert "serialized" not in report.log, source  # no wgmma waits for another
            assert report.cubin.startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize(("size", "channels", "number"), [(56, 64, 151), (56, 64, 150), (28, 128, 152)])
def test_tiles_of_rows_compile_without_spills(size: int, channels: int, number: int) -> None:
    assert NVRTC is not None
    problem = Problem(Convolution(8, size, size, channels, channels, 3, 1, 1), np.random.default_rng(0))
    report = compile_source(NVRTC, WgmmaRows(problem.op, number, CHIPS["h200"]).source, "sm_90a", fresh=True)
    assert report.spilled == 0
    assert "serialized" not in report.log  # no wgmma waits for another


@needs_nvrtc
@pytest.mark.parametrize("number", range(FIRST_MEANS, FIRST_MEANS + len(MEANS)))
@pytest.mark.parametrize(("size", "channels", "taps"), [(7, 512, 1), (11, 64, 3)])
def test_means_compile_without_spills(number: int, size: int, channels: int, taps: int) -> None:
    assert NVRTC is not None
    conv = Convolution(8, size, size, channels, 256, taps, 1, taps // 2, Output.U7, Residual.U4)
    kernel = WgmmaMeans(PooledProblem(conv, np.random.default_rng(0)).op, number, CHIPS["h200"])
    report = compile_source(NVRTC, kernel.source, "sm_90a", fresh=True)
    assert report.spilled == 0
    assert "serialized" not in report.log  # no wgmma waits for another
