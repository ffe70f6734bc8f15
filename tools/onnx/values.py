"""What a value of a foreign graph means: quantised integers, sums of products, and what led to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Reals: TypeAlias = npt.NDArray[np.float64]
Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Pool:
    """Windows of a pooling layer; kernel 0 is the whole map."""

    kernel: int
    stride: int
    padding: int = 0
    ceil_mode: bool = False


@dataclass(frozen=True, eq=False)
class Image:
    """The graph's input, real."""


@dataclass(frozen=True, eq=False)
class Weight:
    """Integers, and the real value of one for each output channel: int64 (K, ...), float64 (K,)."""

    node: str
    ints: Ints
    scale: Reals


@dataclass(frozen=True, eq=False)
class Sums:
    """A convolution: gain[k] * (integer sum of channel k) + bias[k], real, and a ReLU after it or not."""

    node: str
    weight: Weight
    source: Quantised
    stride: tuple[int, int]
    padding: tuple[int, int]
    gain: Reals
    bias: Reals
    rectified: bool = False


@dataclass(frozen=True, eq=False)
class Total:
    """A block's convolution plus its shortcut."""

    node: str
    main: Sums
    shortcut: Quantised
    rectified: bool = False


@dataclass(frozen=True, eq=False)
class Mean:
    """An average of maps."""

    node: str
    source: Quantised
    pool: Pool


@dataclass(frozen=True, eq=False)
class MaxPooled:
    """The largest of each window."""

    source: Quantised
    pool: Pool


Origin: TypeAlias = Image | Sums | Total | Mean | MaxPooled


@dataclass(frozen=True, eq=False)
class Quantised:
    """step * clamp(round(origin / step), lo, hi); `node` is what rounds."""

    node: str
    origin: Origin
    step: float
    lo: int
    hi: int


@dataclass(frozen=True, eq=False)
class Carrier:
    """Integers between QuantizeLinear and DequantizeLinear: of activations (`origin`) or weights (`ints`)."""

    node: str
    scale: Reals
    lo: int
    hi: int
    origin: Origin | None = None
    ints: Ints | None = None


@dataclass(frozen=True, eq=False)
class Logits:
    """gain * integer sum + bias of the last layer."""

    node: str
    weight: Weight
    source: Mean
    bias: Reals


Value: TypeAlias = Array | Image | Weight | Sums | Total | Mean | Quantised | Carrier | Logits
