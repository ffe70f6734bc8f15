"""What is not a convolution, compiled by Numba: one pass over the values of a map each, without Python's lock.

Values are integers in a float type that holds them, as in the NumPy executor: the scales of a call, and its other
numbers, are of the type that `FloatRescale` proved exact, and the arithmetic is done in it. Arrays are C-contiguous and
have their channels last; (pixels, C) is a map as `flat` makes it. A value below 0 may be lifted to half: both are cut
to 0, and a constant of Python's would have Numba compute in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from int4core.backends.numpy.tiles import Array
from int4core.compiled import compiled


@compiled
def to_unsigned(images: Array, out: Array) -> None:
    """int8 (n, C, H, W) -> uint8 (n, H, W, C): each value and 128."""
    n, channels, height, width = images.shape
    for i in range(n):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[i, y, x, c] = np.uint8(np.int16(images[i, c, y, x]) + np.int16(128))


@compiled
def rectify(sums: Array, scale: Array, half: Any, hi: Any, out: Array) -> None:
    """ReLU and Quantize: float (pixels, C) -> uint8 (pixels, C), at most `hi`."""
    kind = scale.dtype.type
    pixels, channels = sums.shape
    for p in range(pixels):
        for c in range(channels):
            value = kind(sums[p, c]) * scale[c] + half
            out[p, c] = np.uint8(np.int32(min(max(value, half), hi)))


@compiled
def add_kept(
    sums: Array, kept: Array, up: Array, up_half: Any, scale: Array, half: Any, hi: Any, out: Array
) -> None:  # fmt: skip
    """The end of a block whose residual is its input, rescaled by `up`: float and uint8 (pixels, C) -> uint8."""
    kind = scale.dtype.type
    pixels, channels = sums.shape
    for p in range(pixels):
        for c in range(channels):
            residual = np.floor(kind(kept[p, c]) * up[c] + up_half)
            value = (kind(sums[p, c]) + residual) * scale[c] + half
            out[p, c] = np.uint8(np.int32(min(max(value, half), hi)))


@compiled
def add_convolved(
    sums: Array, branch: Array,
    down: Array, down_half: Any, lo: Any, top: Any, up: Array, up_half: Any,
    scale: Array, half: Any, hi: Any, out: Array,
) -> None:  # fmt: skip
    """The end of a block whose residual is a convolution's sums, rescaled to lo..top and back: -> uint8 (pixels, C)."""
    kind = scale.dtype.type
    pixels, channels = sums.shape
    for p in range(pixels):
        for c in range(channels):
            middle = kind(branch[p, c]) * down[c]
            middle = min(max(np.trunc(middle + np.copysign(down_half, middle)), lo), top)
            residual = middle * up[c]
            residual = np.trunc(residual + np.copysign(up_half, residual))
            value = (kind(sums[p, c]) + residual) * scale[c] + half
            out[p, c] = np.uint8(np.int32(min(max(value, half), hi)))


@compiled
def max_pool(source: Array, side: int, stride: int, padding: int, dilation: int, out: Array) -> None:
    """uint8 (n, H, W, C) -> uint8 (n, Ho, Wo, C): the largest of each window, of what it has of the map.

    Rows first, whole ones: a pixel's channels alone are too few for a loop.
    """
    n, height, width, channels = source.shape
    _, rows, columns, _ = out.shape
    tallest = np.empty(width * channels, np.uint8)
    for i in range(n):
        for y in range(rows):
            tallest[:] = 0
            for tap in range(side):
                row = y * stride - padding + tap * dilation
                if 0 <= row < height:
                    line = source[i, row].reshape(-1)
                    for j in range(line.size):
                        tallest[j] = max(tallest[j], line[j])
            for x in range(columns):
                best = out[i, y, x]
                best[:] = 0
                for tap in range(side):
                    column = x * stride - padding + tap * dilation
                    if 0 <= column < width:
                        for c in range(channels):
                            best[c] = max(best[c], tallest[column * channels + c])
