"""What kernels and plans need to know of a GPU: its instructions, its limits, and its vendor's peak rates.

A new chip is one record in CHIPS; `python -m int4core.tune` then makes its tuned file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from int4core.errors import EngineError


@dataclass(frozen=True)
class Rates:
    """A multiprocessor's rates a clock, and its limits: for the static model, which says where they are from.

    Attributes:
        int8, int4: multiply-adds of the tensor cores; 0 where they have no such type.
        float_lanes: float32 multiply-adds. Where they are 128, half of the lanes do integer multiply-adds as well,
            else all of them do.
        shared_bytes: between shared memory and registers.
        shared_size: shared memory that its blocks have together, and `shared_reserved` what the system takes of each.
        warps, blocks: the most that it holds.
        l2_bytes: between L2 and all multiprocessors together, a clock, or None: the ports' sum.
    """

    int8: int
    int4: int
    float_lanes: int
    shared_bytes: int
    shared_size: int
    shared_reserved: int
    warps: int
    blocks: int
    l2_bytes: int | None = None


TURING = Rates(1024, 2048, 64, 64, 64 << 10, 0, 32, 16)
"""Tensor cores: 130 TOPS of T4's 40 multiprocessors at 1.59 GHz, twice that at int4 (data sheet). Shared memory at 64
bytes per clock: GA102 whitepaper, which doubles it. Sizes, warps and blocks, here and below: CUDA Programming Guide,
technical specifications per compute capability."""

GA100 = Rates(2048, 4096, 64, 128, 164 << 10, 1 << 10, 64, 32, 5120)
"""Tensor cores: 624 TOPS of 108 multiprocessors at 1.41 GHz, 1,248 at int4 (data sheet). L2: its whitepaper."""

GA10X = Rates(1024, 2048, 128, 128, 100 << 10, 1 << 10, 48, 16)
"""Tensor cores: 250 TOPS of the A10's 72 multiprocessors at 1.695 GHz, twice that at int4 (data sheet)."""

ADA = Rates(1024, 2048, 128, 128, 100 << 10, 1 << 10, 48, 24)
"""Tensor cores: 660.6 TOPS of the RTX 4090's 128 multiprocessors at 2.52 GHz, 1,321 at int4 (AD102 whitepaper)."""

ORIN = Rates(2048, 4096, 128, 128, 164 << 10, 1 << 10, 48, 16)
"""Tensor cores as GA100's: 170 sparse int8 TOPS, so 85 dense, of 16 multiprocessors at 1.3 GHz (technical brief)."""

HOPPER = Rates(4096, 0, 128, 128, 228 << 10, 1 << 10, 64, 32, 5632)
"""Tensor cores: 1,979 TOPS of 132 multiprocessors at 1.83 GHz (data sheet, whitepaper). L2: 132 multiprocessors' share
of one like GA100's (assumed)."""


@dataclass(frozen=True)
class Chip:
    """A GPU.

    Attributes:
        name: the key of `--gpu` and of the tuning files, or the driver's name for a chip without one.
        capability: (major, minor).
        multiprocessors: how many.
        shared_bytes: shared memory that one block may have.
        tops: dense int8 operations per second / 1e12 by the vendor's data sheet; 0 where unknown.
        bandwidth: bytes per second / 1e9 of device memory, likewise.
        driver: a regular expression for what the driver calls it; `` for a chip without a record.
        rates: of a multiprocessor, where the static model has them.
        warning: what a user should know before a run on it.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int
    tops: float = 0.0
    bandwidth: float = 0.0
    driver: str = ""
    rates: Rates | None = None
    warning: str = ""

    @property
    def arch(self) -> str:
        """NVRTC's name of the target: sm_90a where Hopper's own instructions are to be had."""
        major, minor = self.capability
        return f"sm_{major}{minor}" + ("a" if self.capability == (9, 0) else "")


_SLOW_INT8 = (
    "this chip is slow at int8, which the network is computed in here: 0.15 POPS by the vendor's data sheet, where the "
    "B200 has 4.5; expect less of it than of an A100"
)

CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("t4", (7, 5), 40, 64 << 10, 130, 320, r"\bT4\b", TURING),
        Chip("titan_rtx", (7, 5), 72, 64 << 10, 261, 672, r"\bTITAN RTX\b", TURING),
        Chip("a100", (8, 0), 108, 163 << 10, 624, 1935, r"\bA100\b", GA100),
        Chip("a10", (8, 6), 72, 99 << 10, 250, 600, r"\bA10\b", GA10X),
        Chip("orin", (8, 7), 16, 163 << 10, 85, 205, r"\bOrin\b", ORIN),
        Chip("l4", (8, 9), 58, 99 << 10, 242, 300, r"\bL4\b", ADA),
        Chip("l40s", (8, 9), 142, 99 << 10, 733, 864, r"\bL40S\b", ADA),
        Chip("rtx4080", (8, 9), 76, 99 << 10, 390, 717, r"\bRTX 4080$", ADA),
        Chip("rtx4090", (8, 9), 128, 99 << 10, 661, 1008, r"\bRTX 4090$", ADA),
        Chip("rtx6000_ada", (8, 9), 142, 99 << 10, 729, 960, r"\bRTX 6000 Ada\b", ADA),
        Chip("h100", (9, 0), 132, 227 << 10, 1979, 3350, r"\bH100\b", HOPPER),
        Chip("h200", (9, 0), 132, 227 << 10, 1979, 4800, r"\bH200\b", HOPPER),
        Chip("b200", (10, 0), 148, 227 << 10, 4500, 8000, r"\bB200\b"),
        Chip("b300", (10, 3), 148, 227 << 10, 150, 8000, r"\bB300\b", warning=_SLOW_INT8),
        Chip("thor", (11, 0), 20, 227 << 10, 517, 273, r"\bThor\b"),
        Chip("rtx5080", (12, 0), 84, 99 << 10, 450, 960, r"\bRTX 5080$"),
        Chip("rtx5090", (12, 0), 170, 99 << 10, 838, 1792, r"\bRTX 5090$"),
        Chip("rtx_pro_6000", (12, 0), 188, 99 << 10, 1000, 1792, r"\bRTX PRO 6000\b"),
        Chip("gb10", (12, 1), 48, 99 << 10, 250, 273, r"\bGB10\b"),
    )
}
"""The chips that can be planned and compiled for without one. On a chip at hand, the driver's own limits count.

`tops` and `bandwidth` are NVIDIA's, dense, half of what is given with sparsity; data sheets, but for:

- Titan RTX: Turing whitepaper. RTX 4080 and 4090: AD102 whitepaper. RTX 5080 and 5090: RTX Blackwell whitepaper.
- A100: the 80 GB PCIe card; the SXM module has 2,039 GB/s.
- Orin: the AGX 64 GB module's GPU without its DLAs; Thor: the T5000.
- H100: the SXM module.
- B200, B300: HGX, an eighth of the board. RTX PRO 6000, Thor, GB10: a quarter of the dense rate at 4 bits.
"""


def name_of(driver_name: str) -> str | None:
    """Our name of the chip that the driver calls `driver_name` (`NVIDIA A100-SXM4-80GB`); None for others."""
    return next((name for name, chip in CHIPS.items() if re.search(chip.driver, driver_name)), None)


def chip(name: str) -> Chip:
    """The chip called `name`. Raises EngineError for one that is not in the table."""
    if name not in CHIPS:
        raise EngineError(f"unknown GPU {name!r}: known are {', '.join(CHIPS)}")
    return CHIPS[name]
