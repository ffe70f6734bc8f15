"""How weights and channels lie in memory: no kernel unpacks or packs with a shuffle.

Every layout takes channels of a tile in the order of `tile_channels`, so that a thread ends up with consecutive
outputs. The 8-bit kernels unpack words of packed inputs, whose places of K come in the order of `block_channels`.

- mma.sync.m16n8k32 (`arrange_mma`, ptx/mma.cuh): lane 4 * group + quad of a warp holds, of column `group` of a tile of
  eight, places 4 * quad ... + 3 of a k-step and the same 16 further; its operands of two column tiles are 16
  consecutive bytes.
- the 4-bit mma (`arrange_mma4`, ptx/mma_u4s4.cuh): the same lane holds word `quad` (8 places of K) of the 16-byte
  piece of a step, or of both pieces; its operands of two column tiles are consecutive bytes.
- wgmma (`arrange_wgmma`, ptx/wgmma.cuh): core matrices of sixteen places of K by eight channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.layers import Int8Array

K_STEP = 32
"""Places of K that one mma takes."""

LOW, HIGH = -8, 7
"""What a packed weight can be."""

_WORD = 8


def tile_channels(tile_n: int) -> npt.NDArray[np.intp]:
    """Column of the wgmma tile -> channel inside the tile, so that a thread owns tile_n / 4 consecutive ones.

    Of columns 8j .. 8j+7, thread `quad` holds 8j + 2*quad + e with e = 0, 1 (wgmma's accumulator layout).
    """
    j, quad, e = np.meshgrid(np.arange(tile_n // 8), np.arange(4), np.arange(2), indexing="ij")
    return (quad * (tile_n // 4) + 2 * j + e).ravel()


def block_channels(k_bytes: int) -> npt.NDArray[np.intp]:
    """Place in a block of K -> input channel of the block.

    Thread `quad` reads bytes quad * k_bytes/4 ... of a packed row; of its 32-bit word i, the low nibbles
    are places 32i + 4*quad ..., the high nibbles 16 places further (wgmma's layout of A).
    """
    words = k_bytes // 16
    i, high, quad, b = np.meshgrid(np.arange(words), np.arange(2), np.arange(4), np.arange(4), indexing="ij")
    return (quad * 8 * words + 8 * i + 2 * b + high).ravel()


def spread_channels(values: npt.NDArray[Any], tile_n: int) -> npt.NDArray[Any]:
    """(K,) -> (K / tile_n, tile_n / 2, 2): pairs of channels in the order the threads read them."""
    return values.reshape(-1, tile_n)[:, tile_channels(tile_n)].reshape(-1, tile_n // 2, 2)


def fits(weight: Int8Array) -> bool:
    """Whether every weight is one of 4 bits."""
    return bool(weight.size == 0 or (weight.min() >= LOW and weight.max() <= HIGH))


def arrange_mma(weight: Int8Array, warps_n: int, warp_n: int, k_bytes: int) -> Int8Array:
    """int8 (K, C, R, S) -> (K / tile_n, blocks, bytes of a block); tile_n = warps_n * warp_n, blocks over R, S, C."""
    k, c, r, s = weight.shape
    block = 2 * k_bytes
    tiles = weight.reshape(k // warp_n, warp_n, c // block, block, r, s)
    ordered = tiles[:, tile_channels(warp_n)][:, :, :, block_channels(k_bytes)]
    return arrange_operands(ordered.transpose(0, 1, 4, 5, 2, 3).reshape(k // warp_n, warp_n, -1, block), warps_n)


def arrange_mma4(weight: Int8Array, warps_n: int, warp_n: int, k_bytes: int) -> npt.NDArray[np.uint8]:
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


def arrange_wgmma(weight: Int8Array, tile_n: int, k_bytes: int) -> Int8Array:
    """int8 (K, C, R, S) -> the bytes the kernel copies: (K / tile_n, blocks, k_bytes / 8, tile_n, 16).

    Blocks run over R, S, then C. Sixteen places of K of eight channels are a core matrix of wgmma.
    """
    k, c, r, s = weight.shape
    block = 2 * k_bytes
    tiles = weight.reshape(k // tile_n, tile_n, c // block, block, r, s)
    ordered = tiles[:, tile_channels(tile_n)][:, :, :, block_channels(k_bytes)]
    ordered = ordered.transpose(0, 4, 5, 2, 3, 1)  # tile, r, s, channel block, place, column
    shape = (k // tile_n, r * s * (c // block), block // 16, 16, tile_n)
    return np.ascontiguousarray(ordered.reshape(shape).transpose(0, 1, 2, 4, 3))


def join_weights(main: Int8Array, residual: Int8Array) -> Int8Array:
    """The arranged weights of a residual convolution and of the one it is added to, as one K."""
    return np.concatenate((residual, main), axis=1)


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


def pack(values: Int8Array) -> npt.NDArray[np.uint8]:
    """s4 in int8 (..., 2n) -> bytes (..., n): two's complement, the first of two in the low nibble."""
    nibbles = values.view(np.uint8) & np.uint8(15)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << np.uint8(4)
