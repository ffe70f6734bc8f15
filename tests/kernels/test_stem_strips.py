"""The stem in strips: lanes read pixels and weights as stem_strips.cu does, against a plain convolution.

Every read is checked to lie inside the shared memory the launch asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.conv_tile import PAIR_BYTES
from int4core.backends.cuda.families.stem_strips import (
    CONFIGS,
    FIRST_NUMBER,
    STEP_PIXELS,
    STRIP,
    StripStem,
    arrange_strips,
)
from int4core.backends.cuda.plan.ops import Limits, StemOp
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.errors import EngineError
from tests.kernels.lanes import GROUP, QUAD, Ints, by_channel, mma_pairs

H200 = CHIPS["h200"]
NOTHING = -(2**31)


@dataclass(frozen=True)
class Case:
    """A stem: image (h, w), window (r, s), steps and padding of rows and columns, and the maximum's padding."""

    h: int
    w: int
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pool_padding: int = 1
    k: int = 64

    def op(self, rng: np.random.Generator) -> StemOp:
        p = (self.h + 2 * self.padding[0] - self.window[0]) // self.stride[0] + 1
        q = (self.w + 2 * self.padding[1] - self.window[1]) // self.stride[1] + 1
        pooled = (p + 2 * self.pool_padding - 3) // 2 + 1, (q + 2 * self.pool_padding - 3) // 2 + 1
        weight = rng.integers(-128, 128, (self.k, 3, *self.window)).astype(np.int8)
        bias = np.zeros(self.k, np.int16)
        return StemOp(
            "conv1", "input", "maxpool", 1, self.h, self.w, p, q, self.stride, self.padding, weight, bias,
            Rescale(np.full(self.k, 9, np.uint16), 16), Limits.of(weight, bias, -128, 127), 3, 2, self.pool_padding,
            pooled,
        )  # fmt: skip


CASES = (
    Case(21, 20, (7, 7), (2, 2), (3, 3)),
    Case(20, 37, (7, 7), (2, 2), (3, 3)),
    Case(14, 23, (3, 3), (1, 1), (1, 1)),
    Case(17, 19, (5, 4), (1, 3), (0, 2), pool_padding=0),
    Case(19, 40, (6, 9), (3, 2), (5, 4), pool_padding=0),
    Case(12, 33, (2, 8), (1, 1), (0, 0), k=32),
    Case(11, 18, (1, 6), (2, 3), (0, 5), k=96),
    Case(23, 56, (7, 7), (2, 2), (2, 7), pool_padding=0),
)


def reference(op: StemOp, image: Ints) -> Ints:
    """Maxima of sums, int64 (pooled rows, pooled columns, K); what lies outside never wins."""
    (ph, pw), (sh, sw) = op.padding, op.stride
    padded = np.pad(image.astype(np.int64), ((0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(padded, op.weight.shape[2:], (1, 2))[:, ::sh, ::sw]
    sums = np.einsum("cpqrs,kcrs->pqk", windows, op.weight.astype(np.int64), optimize=True)
    pad = op.pool_padding
    bordered = np.pad(sums, ((pad, pad), (pad, pad), (0, 0)), constant_values=NOTHING)
    maxima: Ints = sliding_window_view(bordered, (3, 3), (0, 1))[::2, ::2].max((3, 4))
    return maxima


def lay_pixels(kernel: StripStem, image: Ints, first_line: int, lines: int) -> Ints:
    """int8 (lines, pitch, 4) of shared memory: zeros outside the image, and any fourth byte."""
    op = kernel.op
    words = np.zeros((lines, kernel.pitch, 4), np.int8)
    rows, columns = np.arange(lines) + first_line, np.arange(kernel.pitch) - kernel.left
    inside = ((rows >= 0) & (rows < op.h))[:, None] & ((columns >= 0) & (columns < op.w))
    words[inside, :3] = image[:, rows.clip(0, op.h - 1)][:, :, columns.clip(0, op.w - 1)].transpose(1, 2, 0)[inside]
    words[..., 3] = np.random.default_rng(9).integers(-128, 128, words.shape[:2])
    return words


class Block:
    """One block of the kernel: `pool_rows` rows of maxima from `first_pooled` on."""

    def __init__(self, kernel: StripStem, image: Ints, first_pooled: int) -> None:
        op, config = kernel.op, kernel.config
        self.kernel, self.op, self.first_pooled = kernel, op, first_pooled
        self.first_row = 2 * first_pooled - op.pool_padding
        lines = 2 * config.pool_rows * op.stride[0] + op.weight.shape[2]
        assert kernel.shared_bytes == op.k // 2 * PAIR_BYTES + lines * kernel.pitch * 4
        self.words = lay_pixels(kernel, image, self.first_row * op.stride[0] - op.padding[0], lines)
        arranged = arrange_strips(op.weight, config.warp_n, kernel.lead)
        self.operands = arranged.reshape(op.k // config.warp_n, -1, config.warp_n // 16, 32, 16)

    def convolve(self, part: int, column: Ints, row: int) -> Ints:
        """Sums (2 halves, 8 groups, channels) of columns `column` + half, of a row counted from the first one."""
        op, steps_w = self.op, self.kernel.steps_w
        warp_n = self.kernel.config.warp_n
        if not 0 <= self.first_row + row < op.p:
            return np.full((2, 8, warp_n), NOTHING, np.int64)
        sums = np.zeros((32, warp_n // 2), np.int64)
        for step, operands in enumerate(self.operands[part]):
            line = row * op.stride[0] + step // steps_w
            pieces = []
            for half in range(2):
                word = np.maximum(column + half, 0) * op.stride[1] + 2 * QUAD + step % steps_w * STEP_PIXELS
                assert line < len(self.words)
                assert word.max() + 1 < self.kernel.pitch
                assert op.stride[1] % 2 or not (word % 2).any()  # read two at a time
                pieces.append((self.words[line, word], self.words[line, word + 1]))
            a = np.stack((pieces[0][0], pieces[1][0], pieces[0][1], pieces[1][1]), 1)
            sums += mma_pairs(a, operands)
        return by_channel(sums).reshape(2, 8, warp_n)

    def maxima(self, part: int, strip: int) -> Ints:
        """(pool_rows, 8 groups, channels); group 0's are no maxima."""
        pooled_column = strip * STRIP + GROUP - 1
        column = 2 * pooled_column + 1 - self.op.pool_padding
        exists = np.stack([(column + half >= 0) & (column + half < self.op.q) for half in range(2)])[:, ::4, None]
        found = []
        carried = self.convolve(part, column, 0)
        for row in range(self.kernel.config.pool_rows):
            last = self.convolve(part, column, 2 * row + 2)
            best = np.maximum(np.maximum(self.convolve(part, column, 2 * row + 1), carried), last)
            carried = last
            second, third = np.where(exists, best, NOTHING)
            first = np.concatenate((third[:1], third[:-1]))  # shuffled up by a group
            found.append(np.maximum(np.maximum(first, second), third))
        return np.stack(found)


@pytest.mark.parametrize("warp_n", [32, 64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lanes_give_the_maxima_of_the_sums(case: Case, warp_n: int) -> None:
    if case.k % warp_n:
        warp_n = 32
    number = FIRST_NUMBER + next(i for i, c in enumerate(CONFIGS) if c.warp_n == warp_n and c.pool_rows <= 4)
    rng = np.random.default_rng(case.w)
    op = case.op(rng)
    image = rng.integers(-128, 128, (3, case.h, case.w)).astype(np.int8)
    kernel = StripStem(op, number, H200)
    found = np.full((*op.pooled, op.k), NOTHING - 1)
    for row in range(kernel.grid[0]):
        first = row * kernel.config.pool_rows
        block = Block(kernel, image, first)
        for part, strip in np.ndindex(op.k // warp_n, kernel.strips):
            maxima = block.maxima(part, strip)
            for i, group in np.ndindex(kernel.config.pool_rows, 8):
                place = first + i, strip * STRIP + group - 1
                if group and place[0] < op.pooled[0] and place[1] < op.pooled[1]:
                    found[place][part * warp_n : (part + 1) * warp_n] = maxima[i, group]
    assert np.array_equal(found, reference(op, image))


def test_windows_begin_where_lines_can_be_written_four_pixels_at_a_time() -> None:
    for case in CASES:
        kernel = StripStem(case.op(np.random.default_rng(0)), FIRST_NUMBER + 6, H200)
        assert kernel.left % 4 == kernel.pitch % 4 == 0
        assert kernel.left - kernel.lead == case.padding[1]
        assert all(config.pool_rows % 2 == 0 for config in CONFIGS)


def test_other_maxima_are_refused() -> None:
    op = CASES[0].op(np.random.default_rng(0))
    for wrong in ({"pool_size": 2}, {"pool_stride": 1}, {"pool_padding": 2}):
        with pytest.raises(EngineError, match="maximum over 3x3 windows"):
            StripStem(StemOp(**{**op.__dict__, **wrong}), FIRST_NUMBER, H200)
