"""From an image file to an int8 sample: `int4core.preprocess` on what the rules for files take.

The decoder is Pillow. simplejpeg (TurboJPEG) gives the same pixels and decodes a photograph in 0.89 of
Pillow's time, which is 5 % of the whole: not worth a second decoder, as grey, CMYK and everything that is not
a JPEG would still need the first. `python -m benchmarks.loader` measures the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from int4core.preprocess import memory_to_resize, square, write_sample
from pipeline.errors import ImageError
from pipeline.samples.files import open_sample
from pipeline.samples.images import ImageRules, check_memory, open_image, to_rgb

Sample: TypeAlias = npt.NDArray[np.int8]


class Preprocessor:
    """Decodes images into int8 samples; one for each process, cheap to make.

    Attributes:
        size: side of the square sample, in pixels.
        resize: what the short side is resized to before the centre crop, or None for images that are sized.
        rules: which files are taken.
        compiled: whether images are resized by what Numba compiles (`int4core.resample`) and not by Pillow: the same
            samples, less work for each, and a second before the first. Asked for without Numba, it is an ImportError.
    """

    def __init__(
        self, size: int = 224, resize: int | None = 256, rules: ImageRules | None = None, *, compiled: bool = False
    ) -> None:
        if size < 1 or (resize is not None and resize < size):
            raise ValueError(f"cannot crop {size} x {size} out of images resized to {resize}")
        self.size = size
        self.resize = resize
        self.rules = ImageRules() if rules is None else rules
        self.compiled = compiled and resize is not None
        self._write = _writer(size, resize) if compiled and resize is not None else self._write_by_pillow

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
        with pillow_errors(name):
            return square(self._rgb(self._file_of(data, name), name), self.size, self.resize)

    def _file_of(self, data: bytes, name: str) -> BinaryIO:
        if not data:
            raise ImageError(name, "the file is empty")
        if len(data) > self.rules.max_bytes:
            raise ImageError(name, f"{len(data)} bytes are more than --max-image-bytes {self.rules.max_bytes}")
        return BytesIO(data)

    def _decode(self, file: BinaryIO, path: str | Path, out: Sample) -> None:
        if out.shape != (3, self.size, self.size) or out.dtype != np.int8 or not out.flags.c_contiguous:
            raise ValueError(f"a sample is C-contiguous int8 (3, {self.size}, {self.size})")
        with pillow_errors(path):
            self._write(self._rgb(file, path), out)

    def _rgb(self, file: BinaryIO, path: str | Path) -> Image.Image:
        image = open_image(file, path, self.rules)
        self._check_size(path, *image.size)
        return to_rgb(image, path)

    def _write_by_pillow(self, image: Image.Image, out: Sample) -> None:
        write_sample(square(image, self.size, self.resize), out)

    def _check_size(self, path: str | Path, width: int, height: int) -> None:
        if self.resize is None:
            if min(width, height) < self.size:
                due = f"{self.size} x {self.size}"
                raise ImageError(path, f"{width} x {height} pixels; without resizing it takes {due} or more")
            return
        memory = memory_to_resize(width, height, self.resize, self.size)
        check_memory(path, f"{width} x {height} pixels are too thin: resizing them", memory, self.rules)


def _writer(size: int, resize: int) -> Callable[[Image.Image, Sample], None]:
    """The compiled way from an RGB image to a sample, compiled by now: no image is to wait for that."""
    from int4core.resample import write_resized

    def write(image: Image.Image, out: Sample) -> None:
        write_resized(image, size, resize, out)

    write(Image.new("RGB", (size, size)), np.empty((3, size, size), np.int8))
    return write


@contextmanager
def pillow_errors(path: str | Path) -> Iterator[None]:
    """Whatever reading the image raises, as an ImageError with the reason."""
    with warnings.catch_warnings():
        # Pillow warns of what it repairs, and of sizes for which the rules have bounds of their own.
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(path, "not enough memory to decode it") from error
        except Exception as error:  # on damaged data Pillow's readers raise nearly anything
            raise ImageError(path, f"damaged or cut short: {error or type(error).__name__}") from error
