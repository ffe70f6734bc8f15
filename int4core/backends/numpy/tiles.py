"""Memory of the NumPy executor: padded NHWC byte maps, scratch that is reused, tiles that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from int4core.layers import Pair
from int4core.network import Shape

Array: TypeAlias = npt.NDArray[Any]

CACHE_LINE = 64


class Workspace:
    """Named scratch arrays of one worker thread. They grow on first use and are then reused."""

    def __init__(self) -> None:
        self._flat: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An uninitialised C-contiguous array on a cache line; it overwrites what `name` held before."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            raw = np.empty(size + CACHE_LINE, np.uint8)
            start = -raw.ctypes.data % CACHE_LINE
            flat = self._flat[name] = raw[start : start + size]
        return flat[:size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Window:
    """A sliding window: kernel, stride, padding and dilation along (height, width)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Bytes of a batch's feature maps, NHWC, inside a border of zeros.

    Attributes:
        padded: uint8 or int8 (n, H + 2 * border[0], W + 2 * border[1], C), C-contiguous.
        border: rows above and below, columns left and right.
    """

    padded: Array
    border: Pair

    @classmethod
    def take(
        cls, space: Workspace, name: str, n: int, shape: Shape, border: Pair, dtype: npt.DTypeLike = np.uint8
    ) -> FeatureMap:
        """A map of `n` images with its border cleared and its inside not yet written."""
        (top, left), height, width = border, shape.height, shape.width
        padded = space.take(name, (n, height + 2 * top, width + 2 * left, shape.channels), dtype)
        padded[:, :top] = 0
        padded[:, top + height :] = 0
        padded[:, :, :left] = 0
        padded[:, :, left + width :] = 0
        return cls(padded, border)

    @property
    def inside(self) -> Array:
        """(n, H, W, C) without the border."""
        _, height, width, _ = self.padded.shape
        top, left = self.border
        return self.padded[:, top : height - top, left : width - left]

    def windows(self, window: Window, output: Shape) -> Array:
        """Every window as a view (n, Ho, Wo, R, S, C).

        The border must be at least the window's padding, and wide enough for the last window: a view
        that left the array would read foreign memory, so that is checked.
        """
        top, left = (have - need for have, need in zip(self.border, window.padding, strict=True))
        if top < 0 or left < 0:
            raise ValueError(f"a border of {self.border} is narrower than the padding {window.padding}")
        base = self.padded[:, top:, left:]
        image, row, column, channel = base.strides
        (r, s), (down, right), (far, wide) = window.kernel, window.stride, window.dilation
        last_row = (output.height - 1) * down + (r - 1) * far
        last_column = (output.width - 1) * right + (s - 1) * wide
        if last_row >= base.shape[1] or last_column >= base.shape[2]:
            raise ValueError(f"windows of {output} leave the padded map {base.shape[1]}x{base.shape[2]}")
        return as_strided(
            base,
            (base.shape[0], output.height, output.width, r, s, base.shape[3]),
            (image, row * down, column * right, row * far, column * wide, channel),
            writeable=False,
        )


@dataclass(frozen=True)
class Tile:
    """Some whole images, or some rows of one image: a piece of work whose result fits a cache."""

    images: slice
    rows: slice
    width: int

    @property
    def pixels(self) -> int:
        images = self.images.stop - self.images.start
        return int(images * (self.rows.stop - self.rows.start) * self.width)

    @property
    def index(self) -> tuple[slice, slice]:
        return self.images, self.rows


def tiles(n: int, output: Shape, pixels: int) -> Iterator[Tile]:
    """Cut `n` maps into tiles of about `pixels` output pixels each, as equal as they come."""
    if output.pixels <= pixels:
        images = max(1, pixels // output.pixels)
        for part in even_cuts(n, -(-n // images)):
            yield Tile(part, slice(0, output.height), output.width)
    else:
        rows = max(1, pixels // output.width)
        for image in range(n):
            for part in even_cuts(output.height, -(-output.height // rows)):
                yield Tile(slice(image, image + 1), part, output.width)


def even_cuts(total: int, parts: int) -> Iterator[slice]:
    """0..total in `parts` consecutive slices whose lengths differ by at most one."""
    edges = [total * i // parts for i in range(parts + 1)]
    return (slice(a, b) for a, b in pairwise(edges))
