"""A requantisation to s8 in two multiply-adds of float32, the first of which saturates to 0 ... 1.

The result, 128 too high, is floor(255 * saturated(sum * slope + start)), where `sum * slope + start` is rounded once.
That is no formula for every factor, so it is proven for each channel: both sides only rise with the sum, and are equal
for all sums if they rise at the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.plan.ops import Branch
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.layers import Float32Array

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

STEPS = 255
"""From each of the 256 results to the next one."""

NUDGES = range(256)
"""By how much slopes are larger than the factor, in 2^-24 of it: a larger one moves halves away from zero."""

NEVER = 1 << 40
"""More than any sum."""


@dataclass(frozen=True, eq=False)
class Line:
    """Of each channel (K,), for sums without their bias, of less than 2^24 in magnitude."""

    slope: Float32Array
    start: Float32Array


@dataclass(frozen=True, eq=False)
class _Steps:
    """Of some channels (K, STEPS): sums on either side of each step, and what they have to be above and below."""

    last: Int64Array
    first: Int64Array
    ceiling: Float64Array
    floor: Float64Array

    def __getitem__(self, channels: npt.NDArray[np.intp]) -> _Steps:
        return _Steps(self.last[channels], self.first[channels], self.ceiling[channels], self.floor[channels])

    def middle(self, slope: Float64Array) -> Float64Array:
        """(K,): between the least start of a line and the most, whether or not the latter is more."""
        least, most = self.floor - self.first * slope[:, None], self.ceiling - self.last * slope[:, None]
        middle: Float64Array = (least.max(axis=1) + most.min(axis=1)) / 2
        return middle

    def separated_by(self, slope: Float64Array, start: Float64Array, bias: Int64Array) -> npt.NDArray[np.bool_]:
        """(K,): whether the line is on the right side for all sums.

        A product of float32s is exact in float64, and what is more than a float64 after rounding to one was so before.
        """
        first = (self.first - bias[:, None]) * slope[:, None] + start[:, None]
        last = (self.last - bias[:, None]) * slope[:, None] + start[:, None]
        separated: npt.NDArray[np.bool_] = np.all((first > self.floor) & (last < self.ceiling), axis=1)
        return separated


@lru_cache(maxsize=8)  # every kernel that is tried for a convolution asks
def saturating_line(branch: Branch) -> Line | None:
    """The requantisation of `branch` to s8. None where some channel has no such line."""
    steps, bias, scale = _steps(branch), branch.bias.astype(np.int64), branch.down.scale / STEPS
    line = Line(*np.zeros((2, len(bias)), np.float32))
    left = np.arange(len(bias))
    for nudge in NUDGES:
        slope = (scale[left] * (1 + np.ldexp(nudge, -24))).astype(np.float32)
        exact = slope.astype(np.float64)
        start = (steps[left].middle(exact) + bias[left] * exact).astype(np.float32)
        found = steps[left].separated_by(exact, start.astype(np.float64), bias[left])
        line.slope[left[found]], line.start[left[found]] = slope[found], start[found]
        left = left[~found]
        if not left.size:
            return line
    return None


def _steps(branch: Branch) -> _Steps:
    first, low, high = first_sums(branch.down), branch.limits.low, branch.limits.high
    border = _borders()
    # A step that no sum takes has sums on one side alone.
    ceiling = np.where(first > low, border, np.inf)
    floor = np.where(first <= high, border, -np.inf)
    return _Steps((first - 1).clip(low, high), first.clip(low, high), ceiling, floor)


def first_sums(rescale: Rescale) -> Int64Array:
    """(K, STEPS): the least sum with the result -127, and so on; halves are rounded away from zero."""
    result, one, half = np.arange(-127, 128), 1 << rescale.shift, 1 << rescale.shift >> 1
    factor = rescale.wide[:, None]
    divisor = np.maximum(factor, 1)
    positive = -((half - result * one) // divisor)
    # Not yet so far from zero that the result is the one below, at most 0.
    negative = -(((1 - result) * one - half - 1) // divisor)
    first: Int64Array = np.where(
        result > 0, np.where(factor > 0, positive, NEVER), np.where(factor > 0, negative, -NEVER)
    )
    return first


def _borders() -> Float64Array:
    """(STEPS,): what is more is rounded to a float32 of n / 255 or more, and what is less to a smaller one."""
    n = np.arange(1, STEPS + 1)
    nearest = (n / STEPS).astype(np.float32)
    least = np.where(nearest.astype(np.float64) * STEPS < n, np.nextafter(nearest, np.float32(2)), nearest)
    borders: Float64Array = (least.astype(np.float64) + np.nextafter(least, np.float32(0))) / 2
    return borders
