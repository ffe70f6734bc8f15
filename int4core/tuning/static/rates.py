"""What a multiprocessor of each architecture does in a clock, with the source of every number.

Vendor's: NVIDIA's whitepapers (Turing TU102, GA100, GA102, AD102, GH100), data sheets, and the table of arithmetic
throughput in the CUDA C++ Programming Guide. Measured by others: Jia et al., "Dissecting the NVidia Turing T4 GPU via
Microbenchmarking" (2019). Assumed: said so. Nothing here is fitted to a measurement of these kernels.
"""

from __future__ import annotations

from int4core.backends.cuda.chips import Chip, Rates
from int4core.errors import EngineError

SCHEDULERS = 4
"""Of a multiprocessor; each issues one warp instruction per clock (whitepapers)."""

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


def rates_of(chip: Chip) -> Rates:
    """Raises EngineError for a chip whose rates nobody has looked up."""
    if chip.rates is None:
        raise EngineError(f"{chip.name}: the static model has no rates of its multiprocessors")
    return chip.rates


def clock(chip: Chip) -> float:
    """Clocks per second: those at which the tensor cores give the vendor's peak, which is the boost clock."""
    return chip.tops * 1e12 / (2 * chip.multiprocessors * rates_of(chip).int8)
