"""What kernels and plans need to know of a GPU: its instructions, its limits, and its vendor's peak rates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from int4core.errors import EngineError


@dataclass(frozen=True)
class Chip:
    """A GPU.

    Attributes:
        name: the key of `--gpu` and of the tuning files, or the driver's name for a chip without one.
        capability: (major, minor).
        multiprocessors: how many.
        shared_bytes: shared memory that one block may have.
        tops: dense int8 operations a second / 1e12 by the vendor's data sheet; 0 where unknown.
        bandwidth: bytes a second / 1e9 of device memory, likewise.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int
    tops: float = 0.0
    bandwidth: float = 0.0

    @property
    def arch(self) -> str:
        """NVRTC's name of the target: sm_90a where Hopper's own instructions are to be had."""
        major, minor = self.capability
        return f"sm_{major}{minor}" + ("a" if self.capability == (9, 0) else "")


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("t4", (7, 5), 40, 64 << 10, 130, 320),
        Chip("titan_rtx", (7, 5), 72, 64 << 10, 261, 672),
        Chip("a100", (8, 0), 108, 163 << 10, 624, 1935),
        Chip("a10", (8, 6), 72, 99 << 10, 250, 600),
        Chip("l4", (8, 9), 58, 99 << 10, 242, 300),
        Chip("l40s", (8, 9), 142, 99 << 10, 733, 864),
        Chip("h100", (9, 0), 132, 227 << 10, 1979, 3350),
        Chip("h200", (9, 0), 132, 227 << 10, 1979, 4800),
    )
}
"""The chips that can be planned and compiled for without one; rates are the vendor's, dense, of the SXM part."""


_DRIVER_NAMES = {
    "t4": r"\bT4\b",
    "titan_rtx": r"\bTITAN RTX\b",
    "a100": r"\bA100\b",
    "a10": r"\bA10\b",
    "l4": r"\bL4\b",
    "l40s": r"\bL40S\b",
    "h100": r"\bH100\b",
    "h200": r"\bH200\b",
}


def name_of(driver_name: str) -> str | None:
    """Our name of the chip that the driver calls `driver_name` (`NVIDIA A100-SXM4-80GB`); None for others."""
    return next((name for name, pattern in _DRIVER_NAMES.items() if re.search(pattern, driver_name)), None)


def chip(name: str) -> Chip:
    """The chip called `name`. Raises EngineError for one that is not in the table."""
    if name not in CHIPS:
        raise EngineError(f"unknown GPU {name!r}: known are {', '.join(CHIPS)}")
    return CHIPS[name]
