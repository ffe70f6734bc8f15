"""Pillow's bilinear resampling, the crop and the table of `int4core.preprocess` in one pass, compiled by Numba.

Equal in every element, as the arithmetic is Pillow's (`Resample.c`): a weight is a triangle's height at the distance of
the input pixel's centre from the output pixel's, over the sum of all of them, in float64, rounded to 22 bits of
fraction; sums are of integers, and each of the two passes rounds to uint8. What is saved are the pixels that the crop
drops, the fourth byte that Pillow keeps of each pixel, and two images in between.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from int4core.compiled import compiled
from int4core.layers import Int8Array
from int4core.preprocess import quantize_table, sides, square, starts_with_columns, write_sample

FRACTION_BITS = 22
HALF = 1 << (FRACTION_BITS - 1)

TABLE = quantize_table()

Pixels = npt.NDArray[np.uint8]


def write_resized(image: Image.Image, size: int, short_side: int, out: Int8Array) -> None:
    """The centre `size` x `size` of an RGB image resized to `short_side`, through the table into int8 (3, size, size).

    `out` is C-contiguous. Images whose columns Pillow resamples first are left to it.
    """
    x, y = sides(*image.size, short_side, size)
    if starts_with_columns(x, y):
        write_sample(square(image, size, short_side), out)
    else:
        _write(np.asarray(image), x.new, y.new, x.offset, y.offset, TABLE, out)


@compiled
def _weights(old: int, new: int, offset: int, size: int) -> Any:
    """What `size` output pixels from `offset` on are made of: the first input pixel of each, and weights (size, taps).

    Every row has as many weights as the longest; those at the end of the input begin earlier, with zeros.
    """
    scale = old / new
    support = max(scale, 1.0)
    taps = min(math.ceil(support) * 2 + 1, old)
    first = np.zeros(size, np.uint64)
    weights = np.zeros((size, taps), np.int32)
    heights = np.empty(taps, np.float64)
    most = 1
    for i in range(size):
        centre = (i + offset + 0.5) * scale
        begin = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), old) - begin
        total = 0.0
        for j in range(count):
            distance = abs((j + begin - centre + 0.5) * (1.0 / support))
            heights[j] = 1.0 - distance if distance < 1.0 else 0.0
            total += heights[j]
        skipped = max(begin + taps - old, 0)
        first[i] = begin - skipped
        for j in range(count):
            weights[i, skipped + j] = int(heights[j] / total * (1 << FRACTION_BITS) + 0.5)
            if weights[i, skipped + j] != 0:
                most = max(most, skipped + j + 1)
    return first, weights[:, :most].copy()


@compiled
def _write(
    pixels: Pixels, new_width: int, new_height: int, left: int, top: int, table: Int8Array, out: Int8Array
) -> None:
    """uint8 (H, W, 3), as resized to `new_width` x `new_height` -> its part at (`left`, `top`), int8 (3, h, w)."""
    height, width, _ = pixels.shape
    channels, down, across = out.shape
    first_x, weights_x = _weights(width, new_width, left, across)
    first_y, weights_y = _weights(height, new_height, top, down)
    begin = first_y[0]
    lines = first_y[down - 1] + np.uint64(weights_y.shape[1]) - begin
    line_bytes = np.uint64(3 * width)
    flat = pixels.reshape(-1)
    half = np.int32(HALF)
    # Indices are unsigned: Numba looks whether others are below 0.
    wide = np.empty((channels, lines, across), np.uint8)
    for line in range(lines):
        at = (begin + line) * line_bytes
        red, green, blue = wide[0, line], wide[1, line], wide[2, line]
        for i in range(np.uint64(across)):
            pixel = at + first_x[i] * np.uint64(3)
            r, g, b = half, half, half
            for tap in range(np.uint64(weights_x.shape[1])):
                weight = weights_x[i, tap]
                r += np.int32(flat[pixel]) * weight
                g += np.int32(flat[pixel + np.uint64(1)]) * weight
                b += np.int32(flat[pixel + np.uint64(2)]) * weight
                pixel += np.uint64(3)
            red[i] = min(r >> FRACTION_BITS, 255)
            green[i] = min(g >> FRACTION_BITS, 255)
            blue[i] = min(b >> FRACTION_BITS, 255)
    sums = np.empty(across, np.int32)
    for channel in range(channels):
        values, source = table[channel], wide[channel]
        for i in range(np.uint64(down)):
            sums[:] = half
            for tap in range(np.uint64(weights_y.shape[1])):
                weight = weights_y[i, tap]
                row = source[first_y[i] - begin + tap]
                for j in range(np.uint64(across)):
                    sums[j] += np.int32(row[j]) * weight
            row_out = out[channel, i]
            for j in range(np.uint64(across)):
                row_out[j] = values[np.uint64(min(sums[j] >> FRACTION_BITS, 255))]
