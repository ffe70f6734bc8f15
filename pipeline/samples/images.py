"""Opening an image: which formats, how large, and which pixels are taken, decided before any pixel is decoded.

Pillow is given a list of formats. Without one it tries every plugin there is, and the one for PostScript starts
Ghostscript on any file that begins with `%!PS`, whatever its name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, get_args

import numpy as np

# Pillow imports its plugins for WebP and TIFF only together with all others, unless they are there already.
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from pipeline.errors import ImageError
from pipeline.samples.files import DEFAULT_MAX_BYTES

SixteenBit: TypeAlias = Literal["refuse", "scale"]
SIXTEEN_BIT_CHOICES: tuple[SixteenBit, ...] = get_args(SixteenBit)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Pillow itself refuses what is larger; no setting goes beyond it.
MOST_PIXELS = 178_956_970
DEFAULT_MAX_PIXELS = 100_000_000

# What decoding, conversion and the first crop hold at their peak, per pixel, measured. libwebp keeps two canvases of
# its own, and Pillow takes the pixels out of it as bytes before it makes an image of them.
BYTES_PER_PIXEL = 12
WEBP_BYTES_PER_PIXEL = 20

# Greys of more than 8 bits; Pillow's convert("RGB") cuts them off at 255.
DEEP_GREYS = {"I": "32-bit grey", "F": "floating-point grey"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277


@dataclass(frozen=True)
class ImageRules:
    """Which files are taken as samples, and how grey of more than 8 bits is read.

    Attributes:
        max_bytes: the largest file, in bytes.
        max_pixels: the largest image, in pixels; at most MOST_PIXELS.
        sixteen_bit: whether grey of 16 bits, and float grey of 0 to 1, is refused or scaled to 8 bits.
    """

    max_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS
    sixteen_bit: SixteenBit = "refuse"

    @property
    def max_memory(self) -> int:
        """Bytes that one image may take while it becomes a sample: enough for any of `max_pixels` but WebP."""
        return BYTES_PER_PIXEL * self.max_pixels


def open_image(file: BinaryIO, path: str | Path, rules: ImageRules) -> Image.Image:
    """The image in `file`, opened but not decoded. `path` names it in errors.

    Raises ImageError for another format, more pixels or memory than `rules` allow, and pixels they refuse;
    and what Pillow raises on a damaged header.
    """
    try:
        image: Image.Image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(path, f"not an image, or none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"more than {MOST_PIXELS} pixels: Pillow refuses them, whatever --max-pixels") from error
    width, height = image.size
    if width * height > rules.max_pixels:
        raise ImageError(path, f"{width} x {height} is more than --max-pixels {rules.max_pixels}")
    check_memory(path, f"decoding {width} x {height} pixels of {image.format}", memory_to_decode(image, file), rules)
    if rules.sixteen_bit == "refuse" and is_deep(image):
        kind = DEEP_GREYS.get(image.mode, "16-bit grey")
        raise ImageError(
            path,
            f"{kind} (mode {image.mode}), of which 8 bits would keep one flat colour; "
            "--sixteen-bit scale maps it to 8 bits",
        )
    return image


def memory_to_decode(image: Image.Image, file: BinaryIO) -> int:
    """Bytes that decoding `image` of `file` may take, by its header."""
    pixels = image.width * image.height
    if image.format == "WEBP":  # reads the whole file, and copies it once
        return WEBP_BYTES_PER_PIXEL * pixels + 2 * file.seek(0, os.SEEK_END)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return BYTES_PER_PIXEL * pixels + _tile_bytes(image)
    return BYTES_PER_PIXEL * pixels


def _tile_bytes(image: TiffImagePlugin.TiffImageFile) -> int:
    """One tile of a TIFF, which may be far larger than the image and is decoded whole."""
    tags = image.tag_v2
    pixels = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    return pixels * int(tags.get(_SAMPLES_PER_PIXEL, 1)) * int(max(tags.get(_BITS_PER_SAMPLE, (8,)))) // 8


def check_memory(path: str | Path, what: str, memory: int, rules: ImageRules) -> None:
    """Raises ImageError when `what` takes more memory, in bytes, than `rules` allow."""
    if memory > rules.max_memory:
        most = BYTES_PER_PIXEL * MOST_PIXELS
        allowed = f"{rules.max_memory / 1e6:,.0f} MB that --max-pixels {rules.max_pixels} allows"
        if memory > most:  # whoever raised the limit would be told the same once more
            allowed = f"{most / 1e6:,.0f} MB that any --max-pixels allows"
        raise ImageError(path, f"{what} takes about {memory / 1e6:,.0f} MB, more than the {allowed}")


def is_deep(image: Image.Image) -> bool:
    """Whether `image` is grey of more than 8 bits."""
    return image.mode in DEEP_GREYS or image.mode.startswith("I;16")


def to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """The decoded pixels of `image`, 8-bit RGB. Raises ImageError for grey outside the range that is scaled."""
    if image.mode == "RGB":
        image.load()
        return image
    return (scaled_to_8_bits(image, path) if is_deep(image) else image).convert("RGB")


def scaled_to_8_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Grey of more than 8 bits as mode L.

    Of integers, which must lie in 0..65535, the high byte, as Pillow takes it of 16-bit colour; floats, which
    must lie in 0..1, times 255 and rounded. Raises ImageError for others: their range is anyone's guess.
    """
    values = np.asarray(image)
    most, says = (1, "floats from 0 to 1") if image.mode == "F" else (65535, "integers from 0 to 65535")
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= most:  # NaN is outside, too
        raise ImageError(path, f"its pixels run from {low:g} to {high:g}; --sixteen-bit scale takes {says}")
    eight = np.rint(values * np.float32(255)) if image.mode == "F" else values.astype(np.int32) >> 8
    return Image.fromarray(eight.astype(np.uint8))
