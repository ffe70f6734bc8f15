"""From an image file to an int8 sample, equal to torchvision on Pillow in every element.

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

The decoder is Pillow. simplejpeg (TurboJPEG) gives the same pixels and decodes a photograph in 0.89 of
Pillow's time, which is 5 % of the whole: not worth a second decoder, as grey, CMYK and everything that is not
a JPEG would still need the first. `python -m benchmarks.loader` measures the whole.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import ImageError
from pipeline.samples.files import open_sample
from pipeline.samples.images import ImageRules, check_memory, open_image, to_rgb

Sample: TypeAlias = npt.NDArray[np.int8]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
INPUT_RANGE = 2.64  # the normalised value that becomes 127; no RGB image goes beyond it
INT8_LIMIT = 127

PILLOW_BYTES_PER_PIXEL = 4  # of an RGB image in memory

BILINEAR = Image.Resampling.BILINEAR


def quantize_table() -> Sample:
    """The int8 value of every uint8 value in every channel: int8 (3, 256).

    In float32 and in torchvision's order (to_tensor, then normalize). No entry lies near enough to a tie
    for the precision to matter.
    """
    value = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)
    normalised = (value - mean[:, None]) / std[:, None]
    scaled = normalised * np.float32(INT8_LIMIT) / np.float32(INPUT_RANGE)
    table: Sample = np.clip(np.rint(scaled), -INT8_LIMIT, INT8_LIMIT).astype(np.int8)
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

    if height - new_height > max(0, 2 * (width - new_width)):  # where Pillow 13 starts with the vertical pass
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


class Preprocessor:
    """Decodes images into int8 samples; one for each process, cheap to make.

    Attributes:
        size: side of the square sample, in pixels.
        resize: what the short side is resized to before the centre crop, or None for images that are sized.
        rules: which files are taken.
    """

    def __init__(self, size: int = 224, resize: int | None = 256, rules: ImageRules | None = None) -> None:
        if size < 1 or (resize is not None and resize < size):
            raise ValueError(f"cannot crop {size} x {size} out of images resized to {resize}")
        self.size = size
        self.resize = resize
        self.rules = ImageRules() if rules is None else rules
        self._tables = tuple(row.tobytes() for row in quantize_table())

    def decode_into(self, path: str | Path, out: Sample) -> None:
        """Fill `out`, int8 (3, size, size) and C-contiguous, with the image at `path`.

        Raises ImageError with the reason when the file cannot be read, is not an image, is damaged or cut
        short, is not one that `rules` take, or (without resize) too small. `out` is then as it was.
        """
        with open_sample(path, self.rules.max_bytes) as file:
            self._decode(file, path, out)

    def decode_bytes(self, data: bytes, name: str, out: Sample) -> None:
        """The same of the bytes of an image file, which `name` names in errors."""
        self._decode(self._file_of(data, name), name, out)

    def picture(self, data: bytes, name: str) -> Image.Image:
        """What a sample is made of, before the table: RGB, size x size. Raises ImageError as `decode_bytes` does."""
        with _plainly(name):
            return self._pixels(self._file_of(data, name), name)

    def _file_of(self, data: bytes, name: str) -> BinaryIO:
        if not data:
            raise ImageError(name, "the file is empty")
        if len(data) > self.rules.max_bytes:
            raise ImageError(name, f"{len(data)} bytes are more than --max-image-bytes {self.rules.max_bytes}")
        return BytesIO(data)

    def _decode(self, file: BinaryIO, path: str | Path, out: Sample) -> None:
        if out.shape != (3, self.size, self.size) or out.dtype != np.int8 or not out.flags.c_contiguous:
            raise ValueError(f"a sample is C-contiguous int8 (3, {self.size}, {self.size})")
        with _plainly(path):
            self._write(self._pixels(file, path), out)

    def _pixels(self, file: BinaryIO, path: str | Path) -> Image.Image:
        image = open_image(file, path, self.rules)
        self._check_size(path, *image.size)
        return self._crop(to_rgb(image, path))

    def _check_size(self, path: str | Path, width: int, height: int) -> None:
        if self.resize is None:
            if min(width, height) < self.size:
                due = f"{self.size} x {self.size}"
                raise ImageError(path, f"{width} x {height} pixels; without resizing it takes {due} or more")
            return
        memory = memory_to_resize(width, height, self.resize, self.size)
        check_memory(path, f"{width} x {height} pixels are too thin: resizing them", memory, self.rules)

    def _crop(self, image: Image.Image) -> Image.Image:
        if self.resize is not None:
            return resize_and_crop(image, self.resize, self.size)
        left, top = (crop_offset(length, self.size) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def _write(self, image: Image.Image, out: Sample) -> None:
        """`image`, RGB of the sample's size, through the table into `out`, one plane at a time."""
        for plane, channel, table in zip(out, "RGB", self._tables, strict=True):
            values = image.tobytes("raw", channel).translate(table)
            plane[:] = np.frombuffer(values, dtype=np.int8).reshape(plane.shape)


@contextmanager
def _plainly(path: str | Path) -> Iterator[None]:
    """Whatever reading the image raises, as an ImageError with the reason."""
    with warnings.catch_warnings():
        # Pillow warns of what it mends, and of sizes for which the rules have bounds of their own.
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(path, "not enough memory to decode it") from error
        except Exception as error:  # on damaged data Pillow's readers raise nearly anything
            raise ImageError(path, f"damaged or cut short: {error or type(error).__name__}") from error
