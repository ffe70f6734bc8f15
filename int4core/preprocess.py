"""From an image to the network's int8 input: the contract, equal to torchvision on Pillow in every element.

    convert("RGB") -> resize the short side -> centre crop -> /255 -> minus mean, over std
    -> x * 127 / 2.64, rounded half to even -> clamp to -127..127 -> CHW

All that follows the crop depends on one channel of one pixel alone, so it is a table of 3 x 256 entries.

What is resized is what the crop keeps, as far as that is exact. Pillow resamples in two passes, each
rounded to uint8, with filter weights that depend on where an output pixel's centre lies in the input:

- Rows are cut away before the horizontal pass, columns before the vertical one: neither changes a weight.
- Output pixels outside the crop are skipped with `box` where its edges, which Pillow keeps as float32, say
  exactly where the crop begins: on the short side, at 256, always. Elsewhere the whole side is computed.

The passes are two calls, so their order is fixed: horizontal first. Pillow 13 itself starts with the
vertical one on images more than twice as tall as wide; these are resized whole, by Pillow.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from int4core.errors import EngineError, printable
from int4core.layers import Int8Array

SIZE = 224
"""Side of the published network's input, in pixels."""

RESIZE_OVER_CROP = 256 / 224
"""What the short side is resized to, over the side of the crop."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, in 0..1, over ImageNet."""

INPUT_RANGE = 2.64
"""The normalised value that becomes 127: (1 - 0.406) / 0.225, blue's largest; no RGB image goes beyond it."""

INT8_LIMIT = 127


PILLOW_BYTES_PER_PIXEL = 4
"""Of an RGB image in memory."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Of files: Pillow's other readers start programs, or take any file for theirs."""

DEEP_GREYS = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of more than 8 bits."""

MOST_BYTES = 1 << 30
"""Of an image that is resized: it is much where one side is tiny."""

BILINEAR = Image.Resampling.BILINEAR

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]"


def short_side(size: int) -> int:
    """What the short side is resized to before a crop of `size`: 256 for 224."""
    return round(size * RESIZE_OVER_CROP)


def quantize_table() -> Int8Array:
    """The int8 value of every uint8 value in every channel: int8 (3, 256).

    In float32 and in torchvision's order (to_tensor, then normalize). No entry lies near enough to a tie
    for the precision to matter.
    """
    value = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)
    normalised = (value - mean[:, None]) / std[:, None]
    scaled = normalised * np.float32(INT8_LIMIT) / np.float32(INPUT_RANGE)
    table: Int8Array = np.clip(np.rint(scaled), -INT8_LIMIT, INT8_LIMIT).astype(np.int8)
    return table


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) once the short side is `short_side`: torchvision's rule, the long side rounds down."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def crop_offset(length: int, size: int) -> int:
    """Where the centre crop of `size` begins in `length` pixels: torchvision's rule, half to even."""
    return round((length - size) / 2.0)


@dataclass(frozen=True)
class Side:
    """One side of an image: `old` pixels, resized to `new`, of which `size` from `offset` on are kept."""

    old: int
    new: int
    offset: int
    size: int

    @property
    def scale(self) -> float:
        return self.old / self.new

    @property
    def boxes_exactly(self) -> bool:
        """Whether `box` can say where the kept pixels lie, bit for bit, in float32.

        So it is when old/new in lowest terms has a power of two below the line and the edges fit in the 24
        bits of a float32's fraction. Then all of Pillow's arithmetic on pixel centres is exact.
        """
        denominator = self.new // math.gcd(self.old, self.new)
        return denominator & (denominator - 1) == 0 and self.old * denominator < 2**24

    @property
    def box(self) -> tuple[float, float]:
        """Where the kept pixels begin and end, in input pixels."""
        return self.offset * self.scale, (self.offset + self.size) * self.scale

    @property
    def read(self) -> tuple[int, int]:
        """The input pixels, from and to, that the kept ones are made of; a pixel to spare on either end."""
        begin, end = self.box
        support = max(self.scale, 1.0)  # of the bilinear filter, which widens when it shrinks an image
        return max(math.floor(begin - support) - 1, 0), min(math.ceil(end + support) + 1, self.old)


def starts_with_columns(x: Side, y: Side) -> bool:
    """Whether Pillow 13 resamples the columns of an image with these sides first."""
    return y.old - y.new > max(0, 2 * (x.old - x.new))


def sides(width: int, height: int, short_side: int, size: int) -> tuple[Side, Side]:
    """Both sides of an image that is resized to `short_side` and cropped to the centre `size` x `size`."""
    new_width, new_height = resized_size(width, height, short_side)
    return (
        Side(width, new_width, crop_offset(new_width, size), size),
        Side(height, new_height, crop_offset(new_height, size), size),
    )


def memory_to_resize(width: int, height: int, short_side: int, size: int) -> int:
    """Bytes of the larger image that either pass of `resize_and_crop` makes: much, where one side is tiny."""
    x, y = sides(width, height, short_side, size)
    top, bottom = y.read
    across = (size if x.boxes_exactly else x.new) * (bottom - top)
    down = size * (size if y.boxes_exactly else y.new)
    return PILLOW_BYTES_PER_PIXEL * max(across, down)


def resize_and_crop(image: Image.Image, short_side: int, size: int) -> Image.Image:
    """The centre `size` x `size` of an RGB `image` resized to `short_side` >= size."""
    width, height = image.size
    x, y = sides(width, height, short_side, size)
    new_width, new_height = x.new, y.new

    if starts_with_columns(x, y):
        whole = image.resize((new_width, new_height), BILINEAR)
        return whole.crop((x.offset, y.offset, x.offset + size, y.offset + size))

    top, bottom = y.read
    rows = bottom - top
    image = image.crop((0, top, width, bottom))
    if x.boxes_exactly:
        image = image.resize((size, rows), BILINEAR, box=(x.box[0], 0, x.box[1], rows))
    else:
        image = image.resize((new_width, rows), BILINEAR).crop((x.offset, 0, x.offset + size, rows))

    if y.boxes_exactly:
        return image.resize((size, size), BILINEAR, box=(0, y.box[0] - top, size, y.box[1] - top))
    image = image.crop((0, -top, size, height - top))  # back at its place; what is blank is not kept
    return image.resize((size, new_height), BILINEAR).crop((0, y.offset, size, y.offset + size))


def square(image: Image.Image, size: int, resize: int | None) -> Image.Image:
    """The centre `size` x `size` of an RGB image, its short side resized to `resize` before; None: it is sized."""
    if resize is not None:
        return resize_and_crop(image, resize, size)
    left, top = (crop_offset(length, size) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def write_sample(image: Image.Image, out: Int8Array) -> None:
    """`image`, RGB of the sample's size, through the table into `out`, int8 (3, H, W), one plane at a time."""
    for plane, channel, table in zip(out, "RGB", TABLES, strict=True):
        values = image.tobytes("raw", channel).translate(table)
        plane[:] = np.frombuffer(values, dtype=np.int8).reshape(plane.shape)


TABLES = tuple(row.tobytes() for row in quantize_table())
"""The table's rows, of red, green and blue."""


def preprocess(source: Source, size: int = SIZE, resize: bool = True) -> Int8Array:
    """An image as the network takes it: int8 (3, size, size). `numpy.stack` makes a batch of several.

    Args:
        source: a path, the bytes of a file (FORMATS), a Pillow image, or an array of uint8: (H, W, 3), RGB, or (H, W).
        size: side of the input, as `Engine.input_shape` has it.
        resize: whether the short side is resized to `short_side(size)` before the crop; else it is `size` or more.

    Raises:
        EngineError: it cannot be read, is no image, has greys of more than 8 bits (their range is not agreed), is too
            small or too thin.
    """
    if size < 1:
        raise EngineError(f"size={size}: at least one pixel is needed")
    name, image = _open(source)
    try:
        if image.mode in DEEP_GREYS:
            raise EngineError(f"{name}: grey of more than 8 bits, whose range is not agreed: convert it to 8 bits")
        short = short_side(size) if resize else None
        if short is None and min(image.size) < size:
            due = f"without resizing {size} x {size} are due"
            raise EngineError(f"{name}: {image.width} x {image.height} pixels, {due}")
        if short is not None and memory_to_resize(*image.size, short, size) > MOST_BYTES:
            raise EngineError(f"{name}: {image.width} x {image.height} pixels are too thin to be resized")
        out = np.empty((3, size, size), np.int8)
        write_sample(square(image.convert("RGB"), size, short), out)
    except EngineError:
        raise
    except Exception as error:  # on damaged data Pillow's readers raise nearly anything
        raise EngineError(f"{name}: damaged or cut short: {error or type(error).__name__}") from error
    return out


def _open(source: Source) -> tuple[str, Image.Image]:
    """A name for messages, and the image; its pixels may not have been read."""
    if isinstance(source, Image.Image):
        return "image", source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape[2:] not in ((), (3,)) or source.ndim < 2 or not source.size:
            raise EngineError(f"array: {source.dtype} {source.shape}, and uint8 (H, W, 3) or (H, W) is an image")
        return "array", Image.fromarray(source)
    name = "bytes" if isinstance(source, bytes) else printable(os.fspath(source))
    try:
        return name, Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except OSError as error:
        why = error.strerror or f"no image of a format that is read: {', '.join(FORMATS)}"
        raise EngineError(f"{name}: {why}") from error
    except ValueError as error:  # numbers of a header that are none; a path that no file can have
        raise EngineError(f"{name}: cannot be read: {error}") from error
    except Image.DecompressionBombError as error:
        raise EngineError(f"{name}: {error}") from error
