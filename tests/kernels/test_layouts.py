"""Arranged weights against plain products: warps read them, and activations, as the mma.sync kernels do."""

from __future__ import annotations

import numpy as np
import pytest

from int4core.backends.cuda.families.conv_mma import CONFIGS
from int4core.backends.cuda.families.layouts import arrange_linear, arrange_mma, arrange_stem, spread_channels
from tests.kernels.lanes import GROUP, QUAD, Ints, by_channel, mma, mma_pairs
from tests.kernels.problems import unpack

WARP_CUTS = sorted({(config.warps_n, config.warp_n) for config in CONFIGS})


def test_an_mma_is_a_product_of_matrices() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (16, 32)), rng.integers(-128, 128, (32, 8))
    a = np.stack([
        np.stack([left[GROUP + 8 * (i % 2), 4 * QUAD + j + 16 * (i // 2)] for j in range(4)], -1) for i in range(4)
    ], 1)  # fmt: skip
    b = np.stack([np.stack([right[4 * QUAD + j + 16 * i, GROUP] for j in range(4)], -1) for i in range(2)], 1)
    sums, expected = mma(a, b), left @ right
    for lane in (0, 5, 31):
        group, quad = divmod(lane, 4)
        rows = expected[group, 2 * quad : 2 * quad + 2], expected[group + 8, 2 * quad : 2 * quad + 2]
        assert sums[lane].tolist() == np.concatenate(rows).tolist()


def conv_by_lanes(windows: Ints, weights: Ints, warps_n: int, warp_n: int, k_bytes: int) -> Ints:
    """`multiply_block` of conv_mma.cu over all blocks: packed (16, blocks, k_bytes) -> (16, tile_n)."""
    words, pairs = k_bytes // 16, warp_n // 16
    columns = []
    for warp in range(warps_n):
        sums = np.zeros((32, warp_n // 2), np.int64)
        for block in range(windows.shape[1]):
            stage = weights[block].reshape(words, warps_n, pairs, 32, 16)
            for i in range(words):
                place = QUAD[:, None] * (k_bytes // 4) + 4 * i + np.arange(4)
                upper, lower = windows[GROUP[:, None], block, place], windows[GROUP[:, None] + 8, block, place]
                a = np.stack((upper & 15, lower & 15, upper >> 4, lower >> 4), 1)
                sums += mma_pairs(a, stage[i, warp])
        columns.append(by_channel(sums))
    return np.concatenate(columns, 1)


@pytest.mark.parametrize(("warps_n", "warp_n"), WARP_CUTS)
@pytest.mark.parametrize(("channels", "k_bytes", "taps"), [(32, 16, 3), (64, 32, 1), (192, 32, 2), (256, 64, 1)])
def test_convolutions(warps_n: int, warp_n: int, channels: int, k_bytes: int, taps: int) -> None:
    rng = np.random.default_rng(channels + warp_n)
    tile_n = warps_n * warp_n
    weight = rng.integers(-128, 128, (2 * tile_n, channels, taps, taps)).astype(np.int8)
    windows = rng.integers(0, 256, (16, taps, taps, channels // 2), np.uint8)
    arranged = arrange_mma(weight, warps_n, warp_n, k_bytes)
    assert arranged.shape == (2, taps * taps * channels // (2 * k_bytes), 2 * k_bytes * tile_n)
    blocks = windows.reshape(16, -1, k_bytes)  # the kernel fetches taps row by row, and of each all blocks of channels
    found = np.concatenate([conv_by_lanes(blocks, tile, warps_n, warp_n, k_bytes) for tile in arranged], 1)
    expected = np.einsum("prsc,kcrs->pk", unpack(windows).astype(np.int64), weight.astype(np.int64))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("warp_n", [32, 64])
def test_constants_lie_where_a_thread_reads_its_channels(warp_n: int) -> None:
    values = np.arange(4 * warp_n)
    pairs = spread_channels(values, warp_n).reshape(4, warp_n // 2, 2)
    for warp, quad, tile in np.ndindex(4, 4, warp_n // 8):
        first = warp * warp_n + quad * (warp_n // 4) + 2 * tile
        assert pairs[warp, tile * 4 + quad].tolist() == [first, first + 1]


@pytest.mark.parametrize("tile_n", [32, 64])
@pytest.mark.parametrize(("taps_h", "taps_w"), [(7, 7), (3, 3), (5, 8), (1, 9), (2, 17)])
def test_the_stem(tile_n: int, taps_h: int, taps_w: int) -> None:
    rng = np.random.default_rng(taps_w)
    weight = rng.integers(-128, 128, (2 * tile_n, 3, taps_h, taps_w)).astype(np.int8)
    steps_w = -(-taps_w // 8)
    pixels = rng.integers(-128, 128, (16, taps_h, 8 * steps_w, 4)).astype(np.int8)  # any fourth byte, any pixel beyond
    arranged = arrange_stem(weight, tile_n)
    assert arranged.shape == (2, taps_h, steps_w * 32 * tile_n)
    found = []
    for tile in arranged:
        steps = tile.reshape(taps_h * steps_w, tile_n // 16, 32, 16)
        sums = np.zeros((32, tile_n // 2), np.int64)
        for step in range(taps_h * steps_w):
            row, first = step // steps_w, step % steps_w * 8 + QUAD
            a = np.stack([
                pixels[GROUP, row, first], pixels[GROUP + 8, row, first],
                pixels[GROUP, row, first + 4], pixels[GROUP + 8, row, first + 4],
            ], 1)  # fmt: skip
            sums += mma_pairs(a, steps[step])
        found.append(by_channel(sums))
    seen = pixels[:, :, :taps_w, :3].astype(np.int64)
    assert np.array_equal(np.concatenate(found, 1), np.einsum("prsc,kcrs->pk", seen, weight.astype(np.int64)))


@pytest.mark.parametrize(("classes", "features"), [(64, 64), (5, 128), (100, 192)])
def test_the_fully_connected_layer(classes: int, features: int) -> None:
    rng = np.random.default_rng(classes)
    weight = rng.integers(-128, 128, (classes, features)).astype(np.int8)
    rows = rng.integers(0, 128, (16, features)).astype(np.uint8)
    arranged = arrange_linear(weight, 64)
    columns = []
    for tile in arranged:
        operands = tile.reshape(features // 64, 2, 4, 32, 16)
        sums = np.zeros((32, 32), np.int64)
        for block in range(features // 64):
            words = rows[:, block * 64 : block * 64 + 64].reshape(16, 4, 4, 4)
            for step in range(2):
                a = np.stack([words[GROUP + 8 * (i % 2), QUAD, 2 * step + i // 2] for i in range(4)], 1)
                sums += mma_pairs(a, operands[block, step])
        plain = np.zeros((16, 64), np.int64)
        for i in range(32):  # this kernel writes columns as mma leaves them
            plain[GROUP + i // 2 % 2 * 8, i // 4 * 8 + QUAD * 2 + i % 2] = sums[:, i]
        columns.append(plain)
    expected = rows.astype(np.int64) @ weight.T.astype(np.int64)
    found = np.concatenate(columns, 1)
    assert np.array_equal(found[:, :classes], expected)
    assert not found[:, classes:].any()
