"""How s4 weights lie in memory for the 4-bit mma: a thread's operands of two column tiles are consecutive bytes.

Lane 4 * group + quad of a warp holds, of column `group` of a tile of eight, word `quad` (8 places of K) of the 16-byte
piece of a step, or of both pieces (mma_u4s4.cuh). Channels inside a warp's tile are in the order of the other kernels,
so that a thread ends up with consecutive outputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.sm90_layout import tile_channels
from int4core.layers import Int8Array

LOW, HIGH = -8, 7
"""What a packed weight can be."""

_WORD = 8


def fits(weight: Int8Array) -> bool:
    """Whether every weight is one of 4 bits."""
    return bool(weight.size == 0 or (weight.min() >= LOW and weight.max() <= HIGH))


def arrange_conv(weight: Int8Array, warps_n: int, warp_n: int, k_bytes: int) -> npt.NDArray[np.uint8]:
    """int8 (K, C, R, S) -> packed (K / tile_n, blocks, bytes of a block), blocks over R, S, C.

    tile_n is warps_n * warp_n. The weights must satisfy `fits`. A block of K is 2 * k_bytes channels of one tap.
    """
    k, c, r, s = weight.shape
    block, pieces = 2 * k_bytes, k_bytes // 16
    step_words = min(pieces, 2)
    tiles = weight.reshape(k // warp_n, warp_n, c, r * s)[:, tile_channels(warp_n)]
    split = tiles.reshape(
        k // (warps_n * warp_n), warps_n, warp_n // 16, 2, 8,
        c // block, pieces // step_words, step_words, 4, _WORD, r * s,
    )  # fmt: skip
    # tile, warp, pair, tile of the pair, group, channel block, step, word, quad, nibble, tap
    ordered = split.transpose(0, 10, 5, 6, 1, 2, 4, 8, 3, 7, 9)
    # tile, tap, channel block, step, warp, pair, group, quad, tile of the pair, word, nibble
    return pack(np.ascontiguousarray(ordered)).reshape(k // (warps_n * warp_n), r * s * (c // block), -1)


def pack(values: Int8Array) -> npt.NDArray[np.uint8]:
    """s4 in int8 (..., 2n) -> bytes (..., n): two's complement, the first of two in the low nibble."""
    nibbles = values.view(np.uint8) & np.uint8(15)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << np.uint8(4)
