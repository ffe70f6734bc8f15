"""From headers to what the kernels are given of each image: windows, lanes, and where everything lies in device memory.

All of it is NumPy over a chunk of images; nothing here knows a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import __version__ as PILLOW_VERSION

from int4core.backends.cuda.jit.source import pointer
from pipeline.jpeg.parse import HEADER, Headers

Images: TypeAlias = npt.NDArray[np.void]
"""Records of IMAGE."""

Longs: TypeAlias = npt.NDArray[np.int64]

WINDOW = np.dtype(
    [
        ("plane", pointer("unsigned char")),
        ("first_column", "<i4"),  # this and the next three in blocks
        ("columns", "<i4"),
        ("first_row", "<i4"),
        ("rows", "<i4"),
        ("width", "<i4"),  # of the whole component, in pixels
        ("height", "<i4"),
    ]
)
"""The part of a component that is decoded: a plane of 8 x 8 blocks."""

AXIS = np.dtype(
    [
        ("taps", pointer("int")),  # see kernels/jpeg_taps.cu
        ("old_size", "<i4"),
        ("new_size", "<i4"),
        ("offset", "<i4"),
        ("most_taps", "<i4"),
        ("begin", "<i4"),  # the pixels that are read
        ("end", "<i4"),
    ]
)
"""One side's resampling, or one that leaves it as it is."""

IMAGE = np.dtype(
    [
        ("header", HEADER),
        ("scan", pointer("const unsigned char")),
        ("stream", pointer("unsigned")),  # the scan without stuffing, in words of which the first bit is the highest
        ("arena", pointer("unsigned char")),  # of all lanes
        ("intervals", pointer("unsigned")),
        ("lane_first", pointer("unsigned")),  # (lanes + 1,): blocks before the lane's
        ("lane_dc", pointer("int")),  # (lanes, 4): DC before the lane's, by component
        ("out", pointer("unsigned char")),  # int8 (3, size, size), or uint8 (height, width, 3)
        ("passes", pointer("unsigned")),  # between the two passes
        ("windows", WINDOW, 3),
        ("x", AXIS),
        ("y", AXIS),
        ("mcus_x", "<u4"),  # MCUs a row and a column
        ("mcus_y", "<u4"),
        ("blocks", "<u4"),  # of the scan
        ("lanes", "<u4"),
        ("lane_bits", "<u4"),
        ("lane_bytes", "<u4"),
        ("interval_count", "<u4"),
        ("vertical_first", "<i4"),
    ]
)
"""What the kernels know of an image. Addresses are the device's."""

STRUCTS = {"Header": HEADER, "Window": WINDOW, "Axis": AXIS, "Image": IMAGE}
"""The kernels' structs by name, made from these: KernelSource."""

DAMAGE = {
    1: "marker inside the scan",
    2: "restart markers missing or out of order",
    4: "damaged Huffman table",
    8: "more coefficients than there is memory for",
    16: "invalid code in the scan",
    32: "scan longer or shorter than its blocks",
    64: "coefficients out of range",
    128: "no room on the GPU",
}
"""Reasons by bit of enum Damage, causes before what may follow from them."""

NO_ROOM = 128
"""Set by who plans, not by the kernels: a file for which there was no memory."""

FEW_LANES, MANY_LANES = 32, 128
LONG_SCAN = 512 << 10
"""Bytes of a scan from which on MANY_LANES decode it, however many images there are."""

UNEVEN = 4
"""How much longer than the mean the intervals of a lane may be."""

ALIGNMENT = 16
STREAM_SLACK = 512  # a block may go on behind the scan's end, and the ring of a lane further
MOST_FUSED_SIZE = 256
FUSED_ROW_PIXELS, FUSED_ROWS = 2752, 28
"""ROW_PIXELS and MIDDLE_ROWS of kernels/jpeg_resize.cu."""

PILLOW_GOES_DOWN_FIRST = int(PILLOW_VERSION.split(".")[0]) >= 13
"""Whether Pillow resizes images more than twice as tall as wide vertically first."""


@dataclass(frozen=True)
class Sampling:
    """How samples are made, as Preprocessor makes them.

    Attributes:
        size: side of the square sample.
        resize: what the short side is resized to before the centre crop, or None: images are cropped as they are.
        goes_down_first: see PILLOW_GOES_DOWN_FIRST.
    """

    size: int = 224
    resize: int | None = 256
    goes_down_first: bool = PILLOW_GOES_DOWN_FIRST

    @property
    def fusible(self) -> bool:
        return self.size % 4 == 0 and self.size <= MOST_FUSED_SIZE


def reason_of(damage: int) -> str:
    """Of a word that the kernels have set: the first of its signs."""
    return next(reason for bit, reason in DAMAGE.items() if damage & bit)


def plan_scans(headers: Headers, lanes: int) -> Images:
    """Images with all that decoding the scans takes, but windows and addresses. `lanes`: of scans that are not long."""
    images = np.zeros(len(headers), IMAGE)
    images["header"] = headers
    h, v = headers["h"].astype(np.int64), headers["v"].astype(np.int64)
    width, height = headers["width"].astype(np.int64), headers["height"].astype(np.int64)
    scan_bytes, restart = headers["scan_bytes"].astype(np.int64), headers["restart"].astype(np.int64)
    mcus_x, mcus_y = -(-width // (8 * h)), -(-height // (8 * v))
    per_mcu = np.where(headers["components"] == 1, 1, h * v + 2)
    images["mcus_x"], images["mcus_y"] = mcus_x, mcus_y
    images["blocks"] = mcus_x * mcus_y * per_mcu
    images["interval_count"] = np.where(restart > 0, -(-mcus_x * mcus_y // np.maximum(restart, 1)), 0)
    images["lanes"] = np.where(scan_bytes >= LONG_SCAN, MANY_LANES, lanes)
    lane_words = np.maximum(-(-scan_bytes // (4 * images["lanes"])), 8)
    images["lane_bits"] = lane_words * 32
    images["lane_bytes"] = _lane_bytes(images, per_mcu)
    for component in range(3):
        window = images["windows"][:, component]
        window["width"] = width if component == 0 else -(-width // h)
        window["height"] = height if component == 0 else -(-height // v)
    return images


def _lane_bytes(images: Images, per_mcu: Longs) -> Longs:
    """Room for a lane's coefficients (2 bytes) and blocks (4 bytes), from the fewest bits that they can have.

    A block has a DC code and a code for its end at least, a coefficient an AC code and a bit. Tables that fit neither
    (runs of zeros in a bit or two) may overflow it, which the kernel finds. Of intervals a lane owns whole ones, and
    one may be much longer than another.
    """
    header = images["header"]
    counts, symbols = header["counts"].astype(np.int64), header["symbols"]
    codes = counts.cumsum(-1)
    shortest = np.argmax(codes > 0, -1) + 1
    ends = np.argmax(symbols[:, 2:] == 0, -1)  # the place of the symbol for a block's end
    end_bits = np.minimum((codes[:, 2:] <= ends[..., None]).sum(-1) + 1, 16)

    rows = np.arange(len(images))
    luma_blocks = np.where(header["components"] == 1, 1, per_mcu - 2)
    bits = np.zeros(len(images), np.int64)
    coefficient_bits = np.full(len(images), 32, np.int64)
    for component, blocks in enumerate((luma_blocks, per_mcu > 2, per_mcu > 2)):
        dc, ac = header["dc_table"][:, component], np.maximum(header["ac_table"][:, component], 2)
        bits += blocks * (shortest[rows, dc] + end_bits[rows, ac - 2])
        used = np.asarray(blocks) > 0
        coefficient_bits = np.where(used, np.minimum(coefficient_bits, shortest[rows, ac] + 1), coefficient_bits)
    per_bit = np.maximum(6 * per_mcu / bits, 2.125 / coefficient_bits)
    room: Longs = (images["lane_bits"] * per_bit).astype(np.int64) + 1024
    if np.any(images["interval_count"]):
        intervals = np.maximum(images["interval_count"].astype(np.int64), 1)
        owned = -(-intervals // images["lanes"])
        whole = header["scan_bytes"].astype(np.int64) * 8 * per_bit
        blocks = np.minimum(owned * header["restart"] * per_mcu, images["blocks"])
        most = np.minimum(np.minimum(whole, UNEVEN * whole * owned / intervals), 132.0 * blocks)
        room = np.where(images["interval_count"] > 0, most.astype(np.int64) + 1024, room)
    return -(-room // ALIGNMENT) * ALIGNMENT


def plan_samples(images: Images, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Fill in both axes, and the windows they need; (n,): which images the kernel in one piece can resize."""
    header = images["header"]
    width, height = header["width"].astype(np.int64), header["height"].astype(np.int64)
    new_width, new_height = resized_sizes(width, height, sampling.resize)
    images["vertical_first"] = 0
    if sampling.goes_down_first and sampling.resize is not None:
        images["vertical_first"] = height - new_height > np.maximum(0, 2 * (width - new_width))
    for axis, old, new in ((images["x"], width, new_width), (images["y"], height, new_height)):
        offset = np.rint((new - sampling.size) / 2).astype(np.int64)
        axis["old_size"], axis["new_size"], axis["offset"] = old, new, offset
        # A centre just below a half may round up to it: then an enlarged pixel has a third tap, of no weight.
        axis["most_taps"] = np.where(old < new, 3, -(-2 * old // new))
        scale = old / new
        support = np.maximum(scale, 1.0)
        first, last = (offset + 0.5) * scale, (offset + sampling.size - 0.5) * scale
        axis["begin"] = np.maximum((first - support + 0.5).astype(np.int64), 0)
        axis["end"] = np.minimum((last + support + 0.5).astype(np.int64), old)
    _plan_windows(images)
    x, y = images["x"], images["y"]
    row_pixels = x["end"] - x["begin"] + 8
    fits = (row_pixels <= FUSED_ROW_PIXELS) & (y["most_taps"] <= FUSED_ROWS) & (images["vertical_first"] == 0)
    return np.asarray(fits & sampling.fusible, np.bool_)


def plan_whole(images: Images) -> None:
    """Fill in windows for the whole image."""
    for name, side in (("x", "width"), ("y", "height")):
        images[name]["begin"], images[name]["end"] = 0, images["header"][side]
    _plan_windows(images)


def resized_sizes(width: Longs, height: Longs, resize: int | None) -> tuple[Longs, Longs]:
    """Sizes once the short side is `resize`: the long side rounds down, by a quotient in float64."""
    if resize is None:
        return width, height
    wide = width > height
    new_width = np.where(wide, (resize * width / height).astype(np.int64), resize)
    new_height = np.where(wide, resize, (resize * height / width).astype(np.int64))
    return new_width, new_height


def _plan_windows(images: Images) -> None:
    """Blocks of each component for the pixels from begin to end, in whole words of four, and chroma's neighbours."""
    header = images["header"]
    for component in range(int(header["components"].max(initial=0))):
        window = images["windows"][:, component]
        for axis, factor, first, count, size in (
            (images["x"], header["h"], "first_column", "columns", "width"),
            (images["y"], header["v"], "first_row", "rows", "height"),
        ):
            shrink = factor.astype(np.int64) if component else np.ones(len(images), np.int64)
            begin, end = axis["begin"] // 4 * 4, -(-axis["end"] // 4) * 4
            around = shrink > 1
            low = np.maximum(begin // shrink - around, 0) // 8
            last_block = -(-window[size].astype(np.int64) // 8)
            # A word of four pixels may begin in the component and end beyond it, in the padding of its last block.
            high = np.minimum(-(-(-(-end // shrink) + around) // 8), last_block)
            window[first], window[count] = low, high - low


@dataclass(frozen=True)
class Plan:
    """A chunk of images before they have addresses.

    Attributes:
        sampling: how samples are made, or None: whole RGB images.
        fused: (n,), as plan_samples returns it.
        sizes: bytes in device memory, (n,) each, by what for.
    """

    images: Images
    sampling: Sampling | None
    fused: npt.NDArray[np.bool_]
    sizes: dict[str, Longs]

    @classmethod
    def of(cls, headers: Headers, sampling: Sampling | None, lanes: int) -> Plan:
        images = plan_scans(headers, lanes)
        if sampling is None:
            plan_whole(images)
            fused = np.ones(len(images), np.bool_)
        else:
            fused = plan_samples(images, sampling)
        return cls(images, sampling, fused, sizes_of(images, sampling, fused))

    @property
    def bytes_each(self) -> Longs:
        """(n,): device memory that each image takes, besides its file and its output."""
        total: Longs = np.sum(list(self.sizes.values()), axis=0, dtype=np.int64)
        return total

    def take(self, chosen: slice | npt.NDArray[Any]) -> Plan:
        """Some of the images."""
        sizes = {name: size[chosen] for name, size in self.sizes.items()}
        return Plan(self.images[chosen], self.sampling, self.fused[chosen], sizes)


def chunks(bytes_each: Longs, capacity: int, most: int) -> Iterator[slice]:
    """Runs of up to `most` images that take up to `capacity` bytes together; none takes more alone."""
    begin, ends = 0, np.cumsum(bytes_each)
    while begin < len(bytes_each):
        before = ends[begin - 1] if begin else 0
        end = min(int(np.searchsorted(ends, before + capacity, "right")), begin + most)
        yield slice(begin, end)
        begin = end


def fitting(bytes_each: Longs, capacity: int) -> npt.NDArray[np.bool_]:
    """Which images, (n,), have room in `capacity` bytes together: one that has none takes none from those behind it."""
    fits = np.ones(len(bytes_each), np.bool_)
    if bytes_each.sum() > capacity:
        left = capacity
        for place, size in enumerate(bytes_each.tolist()):
            fits[place] = size <= left
            left -= size * bool(fits[place])
    return fits


def sizes_of(images: Images, sampling: Sampling | None, fused: npt.NDArray[np.bool_]) -> dict[str, Longs]:
    """Bytes that each image takes in device memory, by what for; without `sampling`, for whole images.

    `fused`: as plan_samples returns it.
    """
    header = images["header"]
    lanes = images["lanes"].astype(np.int64)
    sizes = {
        "stream": header["scan_bytes"].astype(np.int64) + STREAM_SLACK,
        "arena": lanes * images["lane_bytes"],
        "lane_first": 4 * (lanes + 1),
        "lane_dc": 16 * lanes,
        "intervals": 4 * (images["interval_count"].astype(np.int64) + 1),
    }
    for component in range(3):
        window = images["windows"][:, component]
        sizes[f"plane{component}"] = 64 * window["columns"].astype(np.int64) * window["rows"]
    if sampling is not None:
        for name in ("x", "y"):
            sizes[f"{name}_taps"] = 4 * sampling.size * (2 + images[name]["most_taps"].astype(np.int64))
        sizes["passes"] = np.where(fused, 0, 4 * sampling.size * between_passes(images))
    return {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}


def between_passes(images: Images) -> Longs:
    """Lines between the two passes of those images that are resized in two."""
    kept = np.where(images["vertical_first"] != 0, images["x"]["end"] - images["x"]["begin"],
                    images["y"]["end"] - images["y"]["begin"])  # fmt: skip
    longs: Longs = kept.astype(np.int64)
    return longs


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(images: Images, sizes: dict[str, Longs], base: int) -> int:
    """Give every part an address from `base` on, part by part; the end of the last."""
    at = base
    for name, size in sizes.items():
        addresses = at + np.cumsum(size) - size
        at += int(size.sum())
        target: Any = images
        if name.startswith("plane"):
            target, name = images["windows"][:, int(name[-1])], "plane"
        elif name.endswith("_taps"):
            target, name = images[name[0]], "taps"
        target[name] = addresses
    return at
