"""From machine code to what a block of threads asks of a multiprocessor: its phases, in clocks of each resource."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from int4core.backends.cuda.chips import Rates
from int4core.tuning.static.rates import (
    CONVERSION_LANES,
    INT_LANES,
    L2_PORT_BYTES,
    REGISTERS,
    SCHEDULERS,
    SPECIAL_LANES,
)
from int4core.tuning.static.sass import Instruction, Listing, Loop

RESOURCES = ("tensor", "issue", "float", "integer", "special", "shared", "l2 port")

_FLOAT = {"FFMA", "FADD", "FMUL", "HFMA2"}
_SPECIAL = {"MUFU", "I2F", "F2I", "I2I"}
_MEMORY = {"LDS", "STS", "LDG", "STG", "LDGSTS", "LD", "ST", "LDSM", "ATOMS", "SYNCS", "LDC", "S2R", "SHFL"}
_TENSOR = {"IMMA", "IGMMA"}
_CONTROL = {
    "BRA", "BAR", "EXIT", "NOP", "BSSY", "BSYNC", "LDGDEPBAR", "DEPBAR", "WARPSYNC", "WARPGROUP", "MEMBAR", "YIELD",
    "CALL", "RET", "USETMAXREG", "ACQBULK", "PREEXIT", "ELECT", "VOTE", "R2UR", "CCTL", "ERRBAR", "BMOV",
}  # fmt: skip


def group_of(name: str) -> str:
    """The class that a table of counts shows."""
    for group, names in (("float", _FLOAT), ("special", _SPECIAL), ("control", _CONTROL), ("tensor", _TENSOR)):
        if name in names:
            return group
    if name in _MEMORY:
        return name
    if name.startswith("U"):
        return "uniform"
    return {"IMAD": "imad", "I2IP": "pack"}.get(name, "integer")


@dataclass(frozen=True)
class Counts:
    """Instructions a warp executes, by class, and the bytes it moves."""

    groups: Counter[str] = field(default_factory=Counter)
    shared: float = 0
    through_l2: float = 0

    @classmethod
    def of(cls, instructions: Iterable[Instruction]) -> Counts:
        groups: Counter[str] = Counter()
        shared = through_l2 = 0
        for instruction in instructions:
            group = group_of(instruction.base)
            groups[group] += 1
            size = 32 * _bytes(instruction.name)
            if group in ("LDS", "STS", "LDGSTS", "LDSM"):
                shared += size
            if group in ("LDG", "STG", "LDGSTS"):
                through_l2 += size
        return cls(groups, shared, through_l2)

    def __mul__(self, times: float) -> Counts:
        scaled = Counter({name: count * times for name, count in self.groups.items()})
        return Counts(scaled, self.shared * times, self.through_l2 * times)

    def __add__(self, other: Counts) -> Counts:
        both = Counter(self.groups)
        both.update(other.groups)
        return Counts(both, self.shared + other.shared, self.through_l2 + other.through_l2)

    def __sub__(self, other: Counts) -> Counts:
        return self + other * -1

    def clocks(self, warps: int, products: float, tensor: int, rates: Rates) -> Mapping[str, float]:
        """What `warps` warps that do this ask of each resource; `products` multiply-adds at `tensor` a clock."""
        count = self.groups
        lanes = {"float": rates.float_lanes, "imad": INT_LANES}
        if rates.float_lanes > INT_LANES:  # half of the lanes take both
            multiply = max(count["imad"] / INT_LANES, (count["imad"] + count["float"]) / rates.float_lanes)
        else:
            multiply = sum(count[name] / lanes[name] for name in lanes)
        return {
            "tensor": products / tensor,
            "issue": warps * sum(count.values()) / SCHEDULERS,
            "float": warps * 32 * multiply,
            "integer": warps * 32 * (count["integer"] / INT_LANES + count["pack"] / CONVERSION_LANES),
            "special": warps * 32 * count["special"] / SPECIAL_LANES,
            "shared": warps * self.shared / rates.shared_bytes,
            "l2 port": warps * self.through_l2 / L2_PORT_BYTES,
        }


def _bytes(name: str) -> int:
    """Of one thread's access."""
    parts = name.split(".")
    if parts[0] == "LDSM":
        return 4 * int(parts[-1])
    return next((int(part) // 8 for part in ("128", "64") if part in parts), 1 if "U8" in parts else 4)


@dataclass(frozen=True)
class Phase:
    """A part of a block's life: what one pass of it asks, and how often it passes.

    A pass that runs by itself takes `pause` clocks more, and at least `wait`.
    """

    clocks: Mapping[str, float]
    times: float = 1
    wait: float = 0
    pause: float = 0

    def alone(self, slower: float) -> float:
        return self.times * max(max(self.clocks.values()) * slower + self.pause, self.wait)


@dataclass(frozen=True)
class Work:
    """One block (or one team of a block) from start to end, `warps` warps; `resident` of them run side by side."""

    phases: tuple[Phase, ...]
    warps: int
    resident: int

    @property
    def total(self) -> dict[str, float]:
        return {name: sum(phase.clocks[name] * phase.times for phase in self.phases) for name in RESOURCES}

    @property
    def bound(self) -> str:
        """The busiest resource."""
        total = self.total
        return max(total, key=lambda name: total[name])

    @property
    def overlapped(self) -> float:
        """Clocks if every resource were used under every other: the busiest one's."""
        return max(self.total.values())

    @property
    def alone(self) -> float:
        """Clocks if it ran by itself: in each phase the busiest resource's; fewer than four warps idle a scheduler."""
        slower = max(1.0, SCHEDULERS / self.warps)
        return sum(phase.alone(slower) for phase in self.phases)

    @property
    def clocks(self) -> float:
        """Between the two: what does not overlap by itself is hidden by the others, all but one part in `resident`."""
        return self.overlapped + max(0.0, self.alone - self.overlapped) / self.resident


def resident_blocks(threads: int, registers: int, shared: int, rates: Rates) -> int:
    """Blocks that a multiprocessor holds at once."""
    warps = math.ceil(threads / 32)
    by_registers = REGISTERS // (math.ceil(registers / 8) * 8 * 32 * warps)
    by_shared = rates.shared_size // max(1, shared + rates.shared_reserved)
    return max(1, min(by_registers, by_shared, rates.warps // warps, rates.blocks))


@dataclass(frozen=True)
class Parts:
    """A kernel's code, cut: before the main loop, one pass of it, what it does once in all its passes, after it."""

    before: Counts
    loop: Counts
    once: Counts
    after: Counts
    products: int
    """Instructions of the tensor cores in a pass."""


def cut(listing: Listing, base: str) -> Parts:
    """Around the loop with the products `base`. Parts of the loop that a branch skips, without products or loads, run
    once: the windows or the rescaling of a residual convolution."""
    loop = listing.loop_of(base)
    skipped = _skipped(listing, loop)
    inside = Counts.of(listing.part(loop))
    once = Counts.of(i for part in skipped for i in listing.part(part))
    code = listing.instructions
    end = next((i for i in range(loop.last + 1, len(code)) if _stands(listing, i)), len(code))
    return Parts(
        Counts.of(code[: loop.first]), inside - once, once, Counts.of(code[loop.last + 1 : end]),
        listing.counts(loop)[base],
    )  # fmt: skip


def _stands(listing: Listing, place: int) -> bool:
    """Whether a branch goes to itself: the end of the code."""
    return listing.labels.get(listing.instructions[place].target or "") in (place - 1, place)


def _skipped(listing: Listing, loop: Loop) -> list[Loop]:
    found: list[Loop] = []
    for place in range(loop.first, loop.last):
        instruction = listing.instructions[place]
        target = listing.labels.get(instruction.target or "")
        if not instruction.predicate or target is None or not place < target <= loop.last:
            continue
        part = Loop(place + 1, target - 1)
        names = listing.counts(part)
        long = part.last - part.first >= 16
        if long and not names.keys() & {"IMMA", "IGMMA", "LDG", "LDGSTS", "BAR"} and not any(part in f for f in found):
            found.append(part)
    return found
