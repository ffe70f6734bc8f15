"""The kernel table: which numbered entries compute an operation on a chip, and which one is taken untuned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families import (
    conv_mma,
    conv_mma4,
    conv_slices,
    conv_wgmma,
    linear_wgmma,
    means_wgmma,
    pair_wgmma,
    pooled_wgmma,
    residual_wgmma,
    rows_wgmma,
    stem_dense_wgmma,
    stem_lines_wgmma,
    stem_mma,
    stem_strips,
    stem_teams_wgmma,
    stem_wgmma,
    winograd_deep_wgmma,
    winograd_wgmma,
)
from int4core.backends.cuda.families.head import Linear, Mean, Top1, TopK
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.plan.ops import ConvOp, LinearOp, Op, PairOp, PooledOp, PoolOp, StemOp, TopOp
from int4core.errors import EngineError


@dataclass(frozen=True)
class Family:
    """Entries `first` ... `first + count - 1` of the table.

    Attributes:
        name: for people.
        make: (op, number, chip) -> the kernel; EngineError when they do not fit.
        default: (op, chip) -> the kernel that should do well untuned; EngineError when none fits.
        describe: number -> its configuration, in words.
    """

    name: str
    first: int
    count: int
    make: Callable[..., Kernel]
    default: Callable[..., Kernel]
    describe: Callable[[int], str]

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


MMA = Family(
    "mma.sync u8.s8", 0, len(conv_mma.CONFIGS), conv_mma.MmaConv, conv_mma.default,
    lambda n: str(conv_mma.CONFIGS[n]),
)  # fmt: skip


def _family(name: str, module: Any, make: Callable[..., Kernel]) -> Family:
    """The family of a module with FIRST_NUMBER, CONFIGS and `default`."""
    first, count = module.FIRST_NUMBER, len(module.CONFIGS)
    return Family(name, first, count, make, module.default, lambda n: str(module.CONFIGS[n - first]))


def _native_mma4(op: ConvOp, number: int, chip: Chip) -> conv_mma4.Mma4Conv:
    if not conv_mma4.is_native(number, chip):
        config = conv_mma4.CONFIGS[number - conv_mma4.FIRST_NUMBER]
        raise EngineError(f"{chip.name} ({chip.arch}) has no tensor cores for {config}")
    return conv_mma4.Mma4Conv(op, number, chip)


MMA4 = _family("mma.sync u4.s4", conv_mma4, _native_mma4)
WGMMA = _family("wgmma u8.s8", conv_wgmma, conv_wgmma.WgmmaConv)
ROWS = Family(
    "wgmma u8.s8, 3x3", rows_wgmma.FIRST_NUMBER, len(rows_wgmma.CONFIGS), rows_wgmma.WgmmaRows, rows_wgmma.default,
    lambda n: "{} teams x {} rows".format(*reversed(rows_wgmma.CONFIGS[n - rows_wgmma.FIRST_NUMBER])),
)  # fmt: skip
STEM = _family("stem", stem_mma, stem_mma.StemConv)
STRIPS = _family("stem, in strips", stem_strips, stem_strips.StripStem)
WGMMA_STEM = _family("stem, wgmma", stem_wgmma, stem_wgmma.WgmmaStem)
LINES_STEM = _family("stem, weights as A", stem_lines_wgmma, stem_lines_wgmma.LinesStem)
TEAMS_STEM = _family("stem, in teams", stem_teams_wgmma, stem_teams_wgmma.TeamsStem)
DENSE_STEM = _family("stem, five k-steps", stem_dense_wgmma, stem_dense_wgmma.DenseStem)
PAIR = _family("wgmma u8.s8, pairs", pair_wgmma, pair_wgmma.WgmmaPair)
WINOGRAD = _family("wgmma, F(2, 3)", winograd_wgmma, winograd_wgmma.WgmmaWinograd)
DEEP_WINOGRAD = _family("wgmma, F(2, 3)", winograd_deep_wgmma, winograd_deep_wgmma.WgmmaDeepWinograd)
SLICES = _family("mma.sync, slices", conv_slices, conv_slices.SlicedConv)
POOLED = _family("wgmma and mean", pooled_wgmma, pooled_wgmma.WgmmaPooled)
MEANS = _family("wgmma and mean", means_wgmma, means_wgmma.WgmmaMeans)
LINEAR = _family("linear, wgmma", linear_wgmma, linear_wgmma.WgmmaLinear)
LINES = _family("wgmma, whole lines", residual_wgmma, residual_wgmma.WgmmaResidual)

CONVOLUTIONS: tuple[Family, ...] = (ROWS, WGMMA, MMA4, MMA, WINOGRAD, DEEP_WINOGRAD, SLICES, LINES)
"""Families that compute a ConvOp, the ones to prefer first."""

STEMS: tuple[Family, ...] = (WGMMA_STEM, STRIPS, STEM, LINES_STEM, TEAMS_STEM, DENSE_STEM)
"""Likewise of a StemOp."""

PAIRS: tuple[Family, ...] = (PAIR,)
"""Likewise of a PairOp: only where a tuning file names one, for both layers."""

POOLS: tuple[Family, ...] = (POOLED, MEANS)
"""Likewise of a PooledOp, for its convolution."""

LINEARS: tuple[Family, ...] = (LINEAR,)
"""Likewise of a LinearOp: only where a tuning file names one; the kernel that every chip has is without a number."""

FAMILIES: tuple[Family, ...] = (*CONVOLUTIONS, *STEMS, *PAIRS, *POOLS, *LINEARS)

PAIR_NUMBERS: frozenset[int] = frozenset(n for family in PAIRS for n in family.numbers)
POOLED_NUMBERS: frozenset[int] = frozenset(n for family in POOLS for n in family.numbers)

KNOWN_NUMBERS: frozenset[int] = frozenset(n for family in FAMILIES for n in family.numbers)


def families_of(op: Op) -> tuple[Family, ...]:
    """The families whose entries compute `op`; none for an operation with a single kernel."""
    if isinstance(op, ConvOp):
        return CONVOLUTIONS
    if isinstance(op, PairOp):
        return PAIRS
    if isinstance(op, PooledOp):
        return POOLS
    if isinstance(op, LinearOp):
        return LINEARS
    return STEMS if isinstance(op, StemOp) else ()


def make_kernel(op: Op, chip: Chip, number: int) -> Kernel:
    """Entry `number` for `op`. Raises EngineError when it is none for it; the message is the reason."""
    if number in PAIR_NUMBERS and not isinstance(op, PairOp):
        raise EngineError("it computes a block's last convolution and the one after it, and both layers must name it")
    if number in POOLED_NUMBERS and not isinstance(op, PooledOp):
        raise EngineError("it computes the network's last convolution and the average pool after it")
    for family in families_of(op):
        if number in family.numbers:
            return family.make(op, number, chip)
    raise EngineError(f"{op.name}: {number} is no kernel for it")


def default_kernel(op: Op, chip: Chip) -> Kernel:
    """The kernel for an operation nobody has tuned.

    Raises:
        EngineError: no kernel computes it on this chip; the message gives every family's reason.
    """
    if isinstance(op, PoolOp):
        return Mean(op)
    if isinstance(op, LinearOp):
        return Linear(op)
    if isinstance(op, TopOp):
        return TopK(op) if op.k else Top1(op)
    reasons = []
    for family in families_of(op):
        try:
            return family.default(op, chip)
        except EngineError as error:
            reasons.append(f"{family.name}: {error}")
    raise EngineError(f"{chip.name}: nothing computes {op.name}: {'; '.join(dict.fromkeys(reasons))}")


def candidates(op: Op, chip: Chip) -> Iterator[Kernel]:
    """Every kernel that computes `op` on `chip`: the one without a number, if any, and those by their numbers."""
    if isinstance(op, (PoolOp, LinearOp, TopOp)):
        yield default_kernel(op, chip)
    for family in sorted(families_of(op), key=lambda family: family.first):
        for number in family.numbers:
            try:
                yield family.make(op, number, chip)
            except EngineError:
                continue


def digest(numbers: Iterable[int]) -> str:
    """12 hex digits of what these entries are: other ones where a number means another kernel, or none."""
    lines = dict(zip(_ordered(), describe(), strict=True))
    text = "\n".join(lines.get(number, f"{number}") for number in sorted(set(numbers)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _ordered() -> Iterator[int]:
    for family in sorted(FAMILIES, key=lambda family: family.first):
        yield from family.numbers


def describe() -> Iterator[str]:
    """A line an entry: number, family, configuration."""
    for family in sorted(FAMILIES, key=lambda family: family.first):
        for number in family.numbers:
            yield f"{number:4d}  {family.name:18s} {family.describe(number)}"
