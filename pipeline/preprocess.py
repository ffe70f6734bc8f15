"""From an image file to an int8 sample: decode, resize, crop, normalise, quantise.

The pixels are those of torchvision's evaluation transform on Pillow: RGB, short side to 256 (bilinear),
centre crop of 224, minus ImageNet's mean over its standard deviation; then x * 127 / 2.64 rounded half to
even and limited to -127..127. Orientation tags are ignored, as torchvision ignores them.

What follows the resize is a function of one byte and its channel, hence a table of 3 x 256 entries. The
resize computes only the rows or columns that the crop keeps along the short side: with a short side of
256 every coordinate there is a multiple of 1/256, which Pillow's single-precision `box` holds exactly, so
the pixels are the same. Along the long side they would not be.

Pillow decodes: libjpeg-turbo is inside it too, and simplejpeg, which wraps the same library, was no faster
(1.5 ms an image of ImageNet on one core for either).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.errors import ImageError

Sample: TypeAlias = npt.NDArray[np.int8]

# ImageNet's statistics of RGB in 0..1, as torchvision's pretrained models use them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# The model's inputs: 2.64 standard deviations, the largest value there is, become 127.
QUANTIZE_SCALE = 127 / 2.64


def quantize_table() -> npt.NDArray[np.int8]:
    """int8 (3, 256): the sample value of each byte of each channel."""
    values = np.arange(256, dtype=np.float64)[None] / 255
    normalised = (values - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    table: npt.NDArray[np.int8] = np.clip(np.rint(normalised * QUANTIZE_SCALE), -127, 127).astype(np.int8)
    return table


class Preprocessor:
    """Decodes files into samples of `size` x `size`.

    Args:
        size: side of the centre crop.
        resize: short side to resize to first; None takes images as they are.
    """

    def __init__(self, size: int = 224, resize: int | None = 256) -> None:
        if resize is not None and resize < size:
            raise ValueError(f"a short side of {resize} is smaller than the crop of {size}")
        self.size = size
        self.resize = resize
        self._table = quantize_table().view(np.uint8).ravel().tolist()

    def decode_into(self, path: str | Path, out: Sample) -> None:
        """Write the sample of the image at `path` into `out`, int8 (3, size, size), C-contiguous.

        Raises ImageError, with the reason, for anything that is not a whole image of a known format; what
        `out` then holds is undefined.
        """
        if out.shape != (3, self.size, self.size) or out.dtype != np.int8:
            raise ValueError(f"out is {out.dtype} {out.shape}; int8 (3, {self.size}, {self.size}) is needed")
        image = self._crop(_decode(Path(path)), Path(path)).point(self._table)
        np.copyto(out, np.asarray(image).view(np.int8).transpose(2, 0, 1))

    def _crop(self, image: Image.Image, path: Path) -> Image.Image:
        size = self.size
        if self.resize is None:
            width, height = image.size
            if min(width, height) < size:
                raise ImageError(path, f"{width}x{height} is smaller than the crop of {size}x{size}")
        else:
            width, height = resized(image.size, self.resize)
            image = self._resize(image, width, height)
        left, top = crop_offset(image.width, size), crop_offset(image.height, size)
        return image.crop((left, top, left + size, top + size))

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resize to (width, height), or, where that gives the same pixels, to the crop's part of it."""
        if image.size == (width, height):
            return image
        box = [0.0, 0.0, float(image.width), float(image.height)]
        target = [width, height]
        short = 0 if image.width <= image.height else 1
        source, resized_to = image.size[short], target[short]
        begin = crop_offset(resized_to, self.size)
        if _is_dyadic(resized_to) and (begin + self.size) * source < 1 << 24:
            box[short] = begin * source / resized_to
            box[short + 2] = (begin + self.size) * source / resized_to
            target[short] = self.size
        return image.resize((target[0], target[1]), Image.Resampling.BILINEAR, box=(*box,))  # type: ignore[arg-type]


def resized(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(width, height) with the short side at `short`; torchvision's rounding of the long one (down)."""
    width, height = size
    if width <= height:
        return short, short * height // width
    return short * width // height, short


def crop_offset(extent: int, size: int) -> int:
    """Where a centre crop of `size` begins; torchvision's rounding (half to even)."""
    return round((extent - size) / 2)


def _is_dyadic(extent: int) -> bool:
    return extent & (extent - 1) == 0


def _decode(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            # Pillow warns of odd palettes and of images that are merely large.
            warnings.simplefilter("ignore")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except PermissionError:
        raise ImageError(path, "permission denied") from None
    except IsADirectoryError:
        raise ImageError(path, "is a folder") from None
    except Exception as error:
        # Damaged files make Pillow's decoders raise almost anything.
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(path, "the file is empty") from None
        if isinstance(error, UnidentifiedImageError):
            raise ImageError(path, "not an image of a known format") from None
        raise ImageError(path, f"cannot be decoded: {error or type(error).__name__}") from error
