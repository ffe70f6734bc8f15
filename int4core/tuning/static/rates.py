"""What a multiprocessor of each architecture does in a clock, with the source of every number.

Vendor's: NVIDIA's whitepapers (Turing TU102, GA100, GA102, AD102, GH100), data sheets, and the table of arithmetic
throughput in the CUDA C++ Programming Guide. Measured by others: Jia et al., "Dissecting the NVidia Turing T4 GPU via
Microbenchmarking" (2019). Assumed: said so. Nothing here is fitted to a measurement of these kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from int4core.backends.cuda.chips import Chip

SCHEDULERS = 4
"""Of a multiprocessor; each issues one warp instruction a clock (whitepapers)."""

REGISTERS = 65536
"""32-bit registers of a multiprocessor (Programming Guide, compute capabilities)."""

INT_LANES = 64
"""32-bit integer additions, logic, comparisons, and multiply-adds, each, a clock (Programming Guide)."""

CONVERSION_LANES = 64
"""Packs of two 32-bit integers (I2IP) a clock: assumed to run like other integer instructions."""

SPECIAL_LANES = 16
"""Reciprocals and conversions between float and int a clock (Programming Guide)."""

L2_PORT_BYTES = 64
"""Between L2 and one multiprocessor a clock (Jia et al. for T4 and V100; assumed for later ones)."""

LATENCY = 600
"""Clocks from a load of device memory to its use: assumed, between what is published for L2 (about 200 to 270) and
for a busy memory (800 and more)."""

SYNC = 60
"""Clocks from a barrier to the first product of a block of K, a load of shared memory between them: assumed."""

LAUNCH_US = 2.0
"""From a kernel's end to the next one's start in a CUDA graph: assumed."""


@dataclass(frozen=True)
class Rates:
    """A multiprocessor's rates a clock.

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
"""Shared memory at 64 bytes a clock: GA102 whitepaper, which doubles it."""

RATES: dict[tuple[int, int], Rates] = {
    (7, 5): TURING,
    (8, 0): Rates(2048, 4096, 64, 128, 164 << 10, 1 << 10, 64, 32, 5120),
    (8, 6): Rates(1024, 2048, 128, 128, 100 << 10, 1 << 10, 48, 16),
    (8, 9): Rates(1024, 2048, 128, 128, 100 << 10, 1 << 10, 48, 24),
    (9, 0): Rates(4096, 0, 128, 128, 228 << 10, 1 << 10, 64, 32, 5632),
}
"""By compute capability. L2 of GA100: its whitepaper; of GH100: 132 multiprocessors' share of a like one (assumed)."""


def rates_of(chip: Chip) -> Rates:
    return RATES[chip.capability]


def clock(chip: Chip) -> float:
    """Clocks a second: those at which the tensor cores give the vendor's peak, which is the boost clock."""
    return chip.tops * 1e12 / (2 * chip.multiprocessors * rates_of(chip).int8)
