"""Kernels as work for a multiprocessor: compiled for their chip, their machine code counted, nothing run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.conv_mma4 import Mma4Conv
from int4core.backends.cuda.families.conv_tile import conv_shape
from int4core.backends.cuda.families.conv_wgmma import WgmmaConv
from int4core.backends.cuda.families.stem_mma import StemConv
from int4core.backends.cuda.jit.nvrtc import Report, compile_source, require_nvrtc
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Residual
from int4core.backends.cuda.plan.ops import Op
from int4core.errors import EngineError
from int4core.tuning.static.rates import LATENCY, LAUNCH_US, SYNC, clock, rates_of
from int4core.tuning.static.sass import Listing, Loop, disassemble
from int4core.tuning.static.work import Counts, Phase, Work, cut, resident_blocks


@dataclass(frozen=True)
class Estimate:
    """A launch.

    Attributes:
        us: by resource: of the multiprocessors (as `Work.clocks` combines theirs), of device memory and of L2.
        bound: the resource that decides: of the multiprocessors', the busiest.
        busy: how much of the multiprocessors' time the tensor cores have products.
    """

    op: Op
    number: int
    kernel: str
    compute_us: float
    memory_us: float
    l2_us: float
    busiest: str
    busy: float

    @property
    def us(self) -> float:
        return max(self.compute_us, self.memory_us, self.l2_us) + LAUNCH_US

    @property
    def bound(self) -> str:
        if self.compute_us >= max(self.memory_us, self.l2_us):
            return self.busiest
        return "device memory" if self.memory_us >= self.l2_us else "L2"


@cache
def compiled(source: KernelSource, arch: str) -> tuple[Report, Listing]:
    report = compile_source(require_nvrtc(), source, arch, fresh=True)
    return report, disassemble(report.cubin)


def estimate(kernel: Mma4Conv | StemConv | WgmmaConv, chip: Chip) -> Estimate:
    """What a launch should take. Raises EngineError when the code is not cut as the model knows it."""
    if isinstance(kernel, WgmmaConv):
        work, units, through_l2 = _wgmma_work(kernel, chip)
        weight_bytes = float(kernel.op.weight_bytes)
    elif isinstance(kernel, StemConv):
        work, units, through_l2 = _stem_work(kernel, chip)
        weight_bytes = float(kernel.op.weight_bytes)
    else:
        work, units, through_l2 = _conv_work(kernel, chip)
        weight_bytes = kernel.op.weight_bytes / 2
    rates, rate = rates_of(chip), clock(chip)
    clocks = units * work.clocks
    l2_us = through_l2 / rates.l2_bytes / rate * 1e6 if rates.l2_bytes else 0.0
    memory_us = (kernel.op.activation_bytes + weight_bytes) / chip.bandwidth / 1e3
    return Estimate(
        kernel.op, kernel.number, str(kernel), clocks / rate * 1e6, memory_us, l2_us, work.bound,
        work.total["tensor"] / work.clocks,
    )  # fmt: skip


def _conv_work(kernel: Mma4Conv, chip: Chip) -> tuple[Work, int, float]:
    report, listing = compiled(kernel.source, chip.arch)
    parts, rates, config = cut(listing, "IMMA"), rates_of(chip), kernel.config
    warps, passes = kernel.threads // 32, int(conv_shape(kernel.conv, kernel.k_bytes)["blocks"])
    products = config.tile_m * config.tile_n * 2 * kernel.k_bytes
    ahead = LATENCY / (config.stages - 1)
    phases = [
        Phase(parts.before.clocks(warps, 0, rates.int4, rates), wait=2 * LATENCY),
        Phase(parts.loop.clocks(warps, products, rates.int4, rates), passes, wait=ahead, pause=SYNC),
        Phase(parts.once.clocks(warps, 0, rates.int4, rates)),
        Phase(
            parts.after.clocks(warps, 0, rates.int4, rates),
            pause=LATENCY if kernel.conv.residual == Residual.U4 else 0,
        ),
    ]
    units = math.ceil(kernel.grid[0] / chip.multiprocessors)
    resident = min(units, resident_blocks(kernel.threads, report.registers, kernel.shared_bytes, rates))
    moved = parts.before.through_l2 + parts.loop.through_l2 * passes + parts.after.through_l2
    return Work(tuple(phases), warps, resident), units, moved * warps * kernel.grid[0]


def _stem_work(kernel: StemConv, chip: Chip) -> tuple[Work, int, float]:
    report, listing = compiled(kernel.source, chip.arch)
    rates, op, warps = rates_of(chip), kernel.op, kernel.threads // 32
    conv_rows = (kernel.config.pool_rows - 1) * op.pool_stride + op.pool_size
    lines = (conv_rows - 1) * op.stride[0] + op.weight.shape[2]
    fill = _innermost(listing, "LDG.E.U8")
    pixels = _count(listing, fill, "LDG.E.U8") / 3  # of the image's three planes
    products = listing.loop_of("IMMA")
    pool = _innermost(listing, "STG", after=products.last)
    steps = op.weight.shape[2] * kernel.steps_w
    multiply_adds = warps * 32 * kernel.tile_n * steps * 32
    words = kernel.config.pool_rows * op.pooled[1] * kernel.tile_n // 8
    times = {
        fill: math.ceil(lines / warps) * math.ceil(kernel.pitch / 32) / pixels,
        products: math.ceil(conv_rows * op.q / (32 * warps)),
        pool: math.ceil(words / kernel.threads) / _count(listing, pool, "STG"),
    }
    rest = Counts.of(listing.instructions)
    phases = []
    for loop, passes in times.items():
        counts = Counts.of(listing.part(loop))
        rest = rest - counts
        done = multiply_adds if loop is products else 0
        pause = LATENCY if loop is fill else 0
        phases.append(Phase(counts.clocks(warps, done, rates.int8, rates), passes, pause=pause))
    phases.append(Phase(rest.clocks(warps, 0, rates.int8, rates), wait=LATENCY))
    blocks = math.prod(kernel.grid)
    units = math.ceil(blocks / chip.multiprocessors)
    resident = min(units, resident_blocks(kernel.threads, report.registers, kernel.shared_bytes, rates))
    return Work(tuple(phases), warps, resident), units, float(op.activation_bytes)


def _wgmma_work(kernel: WgmmaConv, chip: Chip) -> tuple[Work, float, float]:
    """A tile of a team is the unit: its blocks of K, and the rest of the loop over tiles. What the copy engine does
    costs no instructions."""
    _, listing = compiled(kernel.source, chip.arch)
    config, rates = kernel.config, rates_of(chip)
    warps = 4 * config.warpgroups
    inner = [loop for loop in listing.loops if listing.counts(loop)["IGMMA"] and not _holds_loop(listing, loop)]
    outer = max(listing.loops, key=lambda loop: (listing.counts(loop)["IGMMA"], loop.last - loop.first))
    if not inner or outer in inner:
        raise EngineError(f"{kernel.source}: the loops over tiles and over K cannot be distinguished")
    rest = Counts.of(listing.part(outer))
    for loop in inner:
        rest = rest - Counts.of(listing.part(loop))
    main = max(inner, key=lambda loop: listing.counts(loop)["IGMMA"])
    instructions = config.subtiles * (kernel.op.shape.k_bytes // 16)
    block = Counts.of(listing.part(main)) * (instructions / listing.counts(main)["IGMMA"])
    products = config.tile_m * config.tile_n * 2 * kernel.op.shape.k_bytes
    clocks = dict(block.clocks(warps, products, rates.int8, rates))
    clocks["shared"] += config.warpgroups * instructions * config.tile_n * 32 / rates.shared_bytes
    phases = (Phase(clocks, kernel.blocks, pause=SYNC), Phase(rest.clocks(warps, 0, rates.int8, rates)))
    tiles = kernel.tiles * kernel.grid[1]
    streamed = 0 if config.resident else kernel.block_weight_bytes
    moved = tiles * kernel.blocks * (config.tile_m * kernel.op.shape.k_bytes + streamed)
    units = tiles / chip.multiprocessors
    return Work(phases, warps, config.teams), units, float(moved)


def _holds_loop(listing: Listing, loop: Loop) -> bool:
    """Whether a loop with products stands inside."""
    return any(other != loop and other in loop and listing.counts(other)["IGMMA"] for other in listing.loops)


def _count(listing: Listing, loop: Loop, name: str) -> int:
    return sum(instruction.name.startswith(name) for instruction in listing.part(loop))


def _innermost(listing: Listing, name: str, after: int = 0) -> Loop:
    """Of the loops that begin after `after`, the one with the most instructions `name`, and the shortest of these."""
    found = [loop for loop in listing.loops if loop.first > after and _count(listing, loop, name)]
    if not found:
        raise EngineError(f"the code has no loop with {name}")
    return max(found, key=lambda loop: (_count(listing, loop, name), loop.first - loop.last))
