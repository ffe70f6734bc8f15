"""Every Hopper configuration compiles without spills, and keeps wgmma asynchronous; no GPU needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from int4core.backends.cuda.families.conv_wgmma import CONFIGS, Plan
from int4core.backends.cuda.families.rows_wgmma import RowsPlan
from int4core.backends.cuda.jit.nvrtc import compile_kernel, find_nvrtc
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.errors import EngineError

NVRTC = find_nvrtc()
needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc wheel")

WIDE = Convolution(8, 14, 14, 256, 1024, 1, 1, 0)
EPILOGUES = {
    "u4": WIDE,
    "u4 after a residual": replace(WIDE, residual=Residual.U4),
    "u7 after a residual": replace(WIDE, residual=Residual.U4, output=Output.U7),
    "u4 after a residual convolution": replace(
        WIDE, residual=Residual.CONVOLUTION, source=Source(28, 28, 512, 2)
    ),
}


def binaries(epilogue: str) -> list[dict[str, int]]:
    """The constants of every configuration that takes the epilogue: 64 and 128 channels a block of K."""
    found = []
    for number, config in enumerate(CONFIGS):
        conv = EPILOGUES[epilogue]
        if number % 2:
            conv = replace(conv, c=64, source=replace(conv.source, c=64) if conv.source else None)
        try:
            found.append(Plan(conv, config).defines)
        except EngineError:
            continue
    return found


@needs_nvrtc
@pytest.mark.parametrize("epilogue", list(EPILOGUES))
def test_configurations_compile_without_spills(epilogue: str) -> None:
    assert NVRTC is not None
    chosen = binaries(epilogue)
    assert len(chosen) >= len(CONFIGS) // 2
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(
            lambda defines: compile_kernel(NVRTC, "conv_wgmma.cu", defines, "sm_90a"), chosen
        )
        for defines, report in zip(chosen, reports, strict=True):
            assert report.spilled == 0, defines
            assert not report.serialised, defines
            assert report.cubin.startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize(
    ("size", "channels", "rows", "teams"), [(56, 64, 8, 4), (56, 64, 8, 3), (28, 128, 4, 2)]
)
def test_tiles_of_rows_compile_without_spills(size: int, channels: int, rows: int, teams: int) -> None:
    assert NVRTC is not None
    plan = RowsPlan(Convolution(8, size, size, channels, channels, 3, 1, 1), rows, teams)
    report = compile_kernel(NVRTC, "rows_wgmma.cu", plan.defines, "sm_90a")
    assert report.spilled == 0
    assert not report.serialised
