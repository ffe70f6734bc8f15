"""How weights lie in memory for mma.sync.m16n8k32: a thread's operands of two column tiles are 16 consecutive bytes.

Lane 4 * group + quad of a warp holds, of column `group` of a tile of eight, places 4 * quad ... + 3 of a k-step and
the same 16 further (mma.cuh). The order of K inside a block and of channels inside a warp's tile are free, and are
those of the Hopper kernels: neither unpacking nor packing needs a shuffle.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.sm90_layout import block_channels, tile_channels
from int4core.layers import Int8Array

K_STEP = 32
"""Places of K that one mma takes."""


def arrange_conv(weight: Int8Array, warps_n: int, warp_n: int, k_bytes: int) -> Int8Array:
    """int8 (K, C, R, S) -> (K / tile_n, blocks, bytes of a block); tile_n = warps_n * warp_n, blocks over R, S, C."""
    k, c, r, s = weight.shape
    block = 2 * k_bytes
    tiles = weight.reshape(k // warp_n, warp_n, c // block, block, r, s)
    ordered = tiles[:, tile_channels(warp_n)][:, :, :, block_channels(k_bytes)]
    return arrange_operands(ordered.transpose(0, 1, 4, 5, 2, 3).reshape(k // warp_n, warp_n, -1, block), warps_n)


def arrange_stem(weight: Int8Array, tile_n: int) -> Int8Array:
    """int8 (K, 3, R, S) -> (K / tile_n, R, bytes of a window's row).

    A pixel of the window is four places of K, the last of them zero; the row is padded to eight pixels.
    """
    k, c, r, s = weight.shape
    padded = np.zeros((k, r, -(-s // 8) * 8, 4), np.int8)
    padded[:, :, :s, :c] = weight.transpose(0, 2, 3, 1)
    tiles = padded.reshape(k // tile_n, tile_n, r, -1)[:, tile_channels(tile_n)]
    return arrange_operands(tiles, 1)


def arrange_linear(weight: Int8Array, warp_n: int) -> Int8Array:
    """int8 (classes, features) -> (tiles of warp_n classes, blocks of 64 features, bytes); missing classes are zeros.

    Of a block's features a thread takes 16 consecutive ones, four for each half of two k-steps.
    """
    classes, features = weight.shape
    padded = np.zeros((-(-classes // warp_n) * warp_n, features), np.int8)
    padded[:classes] = weight
    step, half, quad, e = np.meshgrid(np.arange(2), np.arange(2), np.arange(4), np.arange(4), indexing="ij")
    order = (quad * 16 + step * 8 + half * 4 + e).ravel()
    return arrange_operands(padded.reshape(-1, warp_n, features // 64, 64)[..., order], 1)


def arrange_operands(tiles: npt.NDArray[np.int8], warps_n: int) -> Int8Array:
    """(warp tiles, columns, blocks, places) -> (tiles, blocks, bytes): k-steps, warps, tile pairs, lanes."""
    count, columns, blocks, places = tiles.shape
    split = tiles.reshape(count // warps_n, warps_n, columns // 16, 2, 8, blocks, places // K_STEP, 2, 4, 4)
    # tile, warp, pair, tile of the pair, group, block, step, half, quad, place
    ordered = split.transpose(0, 5, 6, 1, 2, 4, 8, 3, 7, 9)
    return np.ascontiguousarray(ordered).reshape(count // warps_n, blocks, -1)
