"""Every kernel of the decoder compiles for every chip without one: no spills, and within the chip's limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.jit.nvrtc import compile_source, find_nvrtc
from pipeline.jpeg.launches import sources
from pipeline.jpeg.plan import Sampling

NVRTC = find_nvrtc()
THREADS = {"jpeg_entropy": 128, "jpeg_resize": 256}
REGISTERS = 65536


@pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc wheel")
@pytest.mark.parametrize("arch", sorted({chip.arch for chip in CHIPS.values()}))
def test_compiles_without_spills(arch: str) -> None:
    assert NVRTC is not None
    found = list(dict.fromkeys([*sources(Sampling()), *sources(Sampling(256, 292))]))
    assert len(found) == 15
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda source: compile_source(NVRTC, source, arch, fresh=True), found)
        for source, report in zip(found, reports, strict=True):
            assert report.spilled == 0, source
            assert report.registers * THREADS.get(source.function, 256) <= REGISTERS, source
