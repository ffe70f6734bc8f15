"""Which kernels decode a chunk, over what grid and with which arguments: addresses are all that is not known here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.jit.source import KernelSource
from pipeline.jpeg.plan import FEW_LANES, MANY_LANES, STRUCTS, Images, Sampling

FOLDER = Path(__file__).resolve().parent / "kernels"

Numbers: TypeAlias = npt.NDArray[np.uint32]

UNSTUFF_THREADS, IDCT_THREADS, TAPS_THREADS, PIXEL_THREADS = 256, 128, 128, 256
BAND = 16
BLOCKS_AT_ONCE = 4096
"""Blocks that fill any GPU a few times: so many share the images of a small chunk."""

_UNSTUFF_SHARED = UNSTUFF_THREADS * 16 + 16 + 4 * 8
_TABLES_BYTES = 11888
_LANE_SHARED = 64 + 4 * 4 + 4


def kernel(name: str, file: str | None = None, **constants: int) -> KernelSource:
    """A kernel of this package; without `file`, its file has its name."""
    return KernelSource.of(str(FOLDER / f"{file or name}.cu"), name, constants, STRUCTS)


UNSTUFF, IDCT, RGB = kernel("jpeg_unstuff"), kernel("jpeg_idct"), kernel("jpeg_rgb")


def entropy(lanes: int, restarts: bool) -> KernelSource:
    return kernel("jpeg_entropy", LANES=lanes, RESTARTS=int(restarts))


def entropy_shared(lanes: int) -> int:
    return _TABLES_BYTES + lanes * _LANE_SHARED


def sources(sampling: Sampling) -> tuple[KernelSource, ...]:
    """All that a decoder for such samples, and for whole images, may launch."""
    entropies = (entropy(lanes, restarts) for lanes in (FEW_LANES, MANY_LANES) for restarts in (False, True))
    sized = ["jpeg_taps", "jpeg_first_pass", "jpeg_second_pass", *(["jpeg_resize"] if sampling.fusible else [])]
    return (UNSTUFF, *entropies, IDCT, RGB, *(_sized(name, sampling) for name in sized))


def _sized(name: str, sampling: Sampling) -> KernelSource:
    return kernel(name, "jpeg_passes" if name.endswith("_pass") else None, SIZE=sampling.size)


@dataclass(frozen=True)
class Call:
    """A kernel's launch. `arguments` are addresses."""

    source: KernelSource
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: tuple[np.uint64, ...]


@dataclass(frozen=True)
class Orders:
    """Which images which kernel takes: numbers in one array, and for each kernel from where on and how many.

    Attributes:
        entropy: by (lanes, with restart markers); the longest scans first, as they take longest.
        fused, passes: resized in one piece, or in two passes.
    """

    numbers: Numbers
    entropy: dict[tuple[int, bool], tuple[int, int]]
    fused: tuple[int, int]
    passes: tuple[int, int]

    @classmethod
    def of(cls, images: Images, fused: npt.NDArray[np.bool_]) -> Orders:
        longest_first = np.argsort(-images["header"]["scan_bytes"].astype(np.int64), kind="stable").astype(np.uint32)
        lanes, restarts = images["lanes"][longest_first], images["interval_count"][longest_first] > 0
        parts: list[Numbers] = []
        spans: dict[tuple[int, bool], tuple[int, int]] = {}

        def span(numbers: Numbers) -> tuple[int, int]:
            begin = sum(map(len, parts))
            parts.append(numbers)
            return begin, len(numbers)

        for kind in np.unique(2 * lanes + restarts).tolist():
            spans[kind // 2, bool(kind % 2)] = span(longest_first[2 * lanes + restarts == kind])
        in_one, in_two = span(longest_first[fused[longest_first]]), span(longest_first[~fused[longest_first]])
        return cls(np.concatenate(parts), spans, in_one, in_two)


@dataclass(frozen=True)
class Addresses:
    """Of a chunk's arrays on the device.

    Attributes:
        images: the records.
        orders: Orders.numbers.
        bits: uint32 (n,), written by the first kernel.
        damage: uint32 (n,), zeros before it.
        table: int8 (3, 256), a sample's value of each of a pixel's.
    """

    images: int
    orders: int
    bits: int
    damage: int
    table: int


def calls(count: int, orders: Orders, at: Addresses, sampling: Sampling | None) -> Iterator[Call]:
    """The launches for `count` images, in order; without `sampling`, to whole RGB images."""
    images, damage, bits, table = (np.uint64(a) for a in (at.images, at.damage, at.bits, at.table))

    def order(span: tuple[int, int]) -> np.uint64:
        return np.uint64(at.orders + 4 * span[0])

    def shares(images_of_kernel: int, least: int) -> int:
        return max(least, min(BLOCKS_AT_ONCE // images_of_kernel, 256))

    yield Call(UNSTUFF, (count, 1, 1), UNSTUFF_THREADS, _UNSTUFF_SHARED, (images, bits, damage))
    for (lanes, restarts), span in orders.entropy.items():
        arguments = (images, order(span), bits, damage)
        yield Call(entropy(lanes, restarts), (span[1], 1, 1), lanes, entropy_shared(lanes), arguments)
    yield Call(IDCT, (count, shares(count, 8), 1), IDCT_THREADS, 0, (images, damage))
    if sampling is None:
        yield Call(RGB, (count, shares(count, 8), 1), PIXEL_THREADS, 0, (images, damage))
        return
    yield Call(_sized("jpeg_taps", sampling), (count, 2, 1), TAPS_THREADS, 0, (images,))
    if orders.fused[1]:
        grid = (orders.fused[1], -(-sampling.size // BAND), 1)
        arguments = (images, order(orders.fused), damage, table)
        yield Call(_sized("jpeg_resize", sampling), grid, sampling.size, 0, arguments)
    if orders.passes[1]:
        grid = (orders.passes[1], shares(orders.passes[1], 16), 1)
        first = (images, order(orders.passes), damage)
        yield Call(_sized("jpeg_first_pass", sampling), grid, PIXEL_THREADS, 0, first)
        yield Call(_sized("jpeg_second_pass", sampling), grid, PIXEL_THREADS, 0, (*first, table))
