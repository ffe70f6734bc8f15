"""mma.sync.m16n8k32 lane by lane, as ptx/mma.cuh describes it, in NumPy integers."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[Any]

GROUP, QUAD = np.divmod(np.arange(32), 4)
"""Of each lane of a warp."""


def mma(a: Ints, b: Ints) -> Ints:
    """Lanes' A registers (..., 32, 4 words, 4 bytes) and B registers (..., 32, 2, 4) -> sums int64 (..., 32, 4)."""
    lead = np.broadcast_shapes(a.shape[:-3], b.shape[:-3])
    left, right = np.zeros((*lead, 16, 32), np.int64), np.zeros((*lead, 32, 8), np.int64)
    for byte in range(4):
        for register in range(4):
            rows, places = GROUP + 8 * (register % 2), 4 * QUAD + byte + 16 * (register // 2)
            left[..., rows, places] = a[..., register, byte]
        for register in range(2):
            right[..., 4 * QUAD + byte + 16 * register, GROUP] = b[..., register, byte]
    product = left @ right
    return np.stack([product[..., GROUP + 8 * (i // 2), 2 * QUAD + i % 2] for i in range(4)], -1)


def mma_pairs(a: Ints, operands: Ints) -> Ints:
    """A registers, and the bytes (pairs of tiles, 32 lanes, 16) of column tiles -> what adds to sums (32, 8 a pair)."""
    pairs = operands.reshape(-1, 32, 4, 4)
    sums = np.concatenate((mma(a, pairs[:, :, :2]), mma(a, pairs[:, :, 2:])), -1)  # pairs, lanes, 8
    return sums.transpose(1, 0, 2).reshape(32, -1)


def by_channel(sums: Ints) -> Ints:
    """A warp's sums (32, 4 a column tile) -> (16 rows, channels), as the epilogue packs them.

    Of a tile's four sums the first two are of row `group`, the others eight further; a thread writes consecutive
    channels: two of each tile.
    """
    tiles = sums.shape[1] // 4
    out = np.zeros((16, 8 * tiles), sums.dtype)
    for tile in range(tiles):
        for i in range(4):
            out[GROUP + 8 * (i // 2), QUAD * 2 * tiles + 2 * tile + i % 2] = sums[:, 4 * tile + i]
    return out
