"""First convolutions with random contents, and what they give in NumPy integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from int4core.backends.cuda.plan.ops import Limits, StemOp
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.dtypes import U4
from int4core.layers import Pair
from int4core.quantize import requantize


class StemProblem:
    """`n` images of `size` = (H, W) over the whole range, and a window with a maximum of 3x3 and stride 2."""

    def __init__(
        self, rng: np.random.Generator, n: int, size: Pair, *, window: Pair = (7, 7), stride: Pair = (2, 2),
        padding: Pair = (3, 3), pool_padding: int = 1, k: int = 64,
    ) -> None:  # fmt: skip
        p, q = ((size[i] + 2 * padding[i] - window[i]) // stride[i] + 1 for i in range(2))
        pooled = (p + 2 * pool_padding - 3) // 2 + 1, (q + 2 * pool_padding - 3) // 2 + 1
        weight = rng.integers(-128, 128, (k, 3, *window)).astype(np.int8)
        bias = rng.integers(-3000, 3000, k).astype(np.int16)
        factor = np.where(rng.integers(0, 6, k) == 0, rng.choice([0, 1, 4096, 32768], k), rng.integers(0, 40, k))
        limits = Limits.of(weight, bias, -128, 127)
        self.input = rng.integers(-128, 128, (n, 3, *size)).astype(np.int8)
        self.op = StemOp(
            "conv1", "input", "maxpool", n, *size, p, q, stride, padding, weight, bias,
            Rescale(factor.astype(np.uint16), 16), limits, 3, 2, pool_padding, pooled,
        )  # fmt: skip

    def expected(self) -> Any:
        """uint8 (N, pooled rows, pooled columns, K / 2)."""
        op = self.op
        (ph, pw), (sh, sw) = op.padding, op.stride
        padded = np.pad(self.input.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        windows = sliding_window_view(padded, op.weight.shape[2:], (2, 3))[:, :, ::sh, ::sw]
        sums = np.tensordot(windows, op.weight.astype(np.float64), ((1, 4, 5), (1, 2, 3))).astype(np.int64) + op.bias
        values = requantize(np.maximum(sums, 0), op.rescale.factor, op.rescale.shift, U4)
        pad = op.pool_padding
        bordered = np.pad(values, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        maxima = sliding_window_view(bordered, (3, 3), (1, 2))[:, ::2, ::2].max((4, 5))
        return (maxima[..., 0::2] | maxima[..., 1::2] << 4).astype(np.uint8)
