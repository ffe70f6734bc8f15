"""What a loader does in a second on one core: `python -m benchmarks.loader [--images DIR]`.

Every way of making samples has a process of its own, as a loader has: they would slow each other down by what
they leave in caches and in the allocator. They take turns over the images, one at a time, several times
over; the figures are medians of CPU time, which other work on the machine disturbs least. All samples are
compared with the reference's before any of them is timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image
from rich.console import Console
from rich.table import Table

import pipeline
from int4core.errors import printed
from int4core.preprocess import quantize_table
from int4core.streams import run_command
from pipeline.errors import PipelineError
from pipeline.extras import is_installed
from pipeline.samples.library import SampleLibrary
from pipeline.samples.preprocess import Preprocessor

SIZE = 224
RESIZE = 256
DEMO_IMAGES = Path(pipeline.__file__).parent / "demo"

DECODE = "Pillow, decoding alone"
REFERENCE = "torchvision's, CHW float32"
PLAIN = "plain NumPy, HWC float64"
TABLE = "whole resize, then a table"
OURS = "pipeline.samples.preprocess"
COMPILED = "the same, resized by Numba"


def reference_crop(path: Path, size: int = SIZE, resize: int | None = RESIZE) -> Image.Image:
    """RGB, short side to `resize`, centre crop: torchvision's Resize and CenterCrop, spelled out."""
    image = Image.open(path).convert("RGB")
    if resize is not None:
        w, h = image.size
        new_size = (resize, int(resize * h / w)) if w <= h else (int(resize * w / h), resize)
        image = image.resize(new_size, Image.Resampling.BILINEAR)
    w, h = image.size
    left, top = round((w - size) / 2.0), round((h - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def reference_sample(path: Path, size: int = SIZE, resize: int | None = RESIZE) -> npt.NDArray[np.int8]:
    """The sample of an image, int8 (3, size, size), with neither table nor short cut: what a sample is.

    As torchvision does it: ToTensor makes float32 in CHW, Normalize keeps to that.
    """
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32).reshape(3, 1, 1)
    pixels = np.asarray(reference_crop(path, size, resize)).transpose(2, 0, 1)
    x = np.ascontiguousarray(pixels).astype(np.float32) / 255
    return quantized((x - mean) / std)


def plain_sample(path: Path) -> npt.NDArray[np.int8]:
    """The same as it is often written: pixels stay HWC, and a uint8 over 255 makes float64."""
    x = np.asarray(reference_crop(path)) / 255
    x = (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return np.ascontiguousarray(quantized(x).transpose(2, 0, 1))


def quantized(x: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    q: npt.NDArray[np.int8] = np.clip(np.round(x * 127 / 2.64), -127, 127).astype(np.int8)
    return q


@dataclass(frozen=True)
class Figure:
    """One way of making samples, on one core; `to_...`: how many times as fast as that way."""

    name: str
    ms_per_image: float
    images_per_s: float
    to_decode: float
    to_reference: float
    to_plain: float


def ways() -> dict[str, Callable[[Path], npt.NDArray[np.int8] | None]]:
    """Name -> what makes a sample of a file (None: it only decodes it)."""
    preprocessor = Preprocessor(SIZE, RESIZE)
    compiled = Preprocessor(SIZE, RESIZE, compiled=True) if is_installed("numba") else None
    lookup = quantize_table().view(np.uint8).ravel().tolist()
    out = np.empty((3, SIZE, SIZE), dtype=np.int8)

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    def whole_then_table(path: Path) -> npt.NDArray[np.int8]:
        out[:] = np.asarray(reference_crop(path).point(lookup)).view(np.int8).transpose(2, 0, 1)
        return out

    def ours(path: Path) -> npt.NDArray[np.int8]:
        preprocessor.decode_into(path, out)
        return out

    def by_numba(path: Path) -> npt.NDArray[np.int8]:
        assert compiled is not None
        compiled.decode_into(path, out)
        return out

    made: dict[str, Callable[[Path], npt.NDArray[np.int8] | None]] = {
        DECODE: decode,
        REFERENCE: reference_sample,
        PLAIN: plain_sample,
        TABLE: whole_then_table,
        OURS: ours,
    }
    if compiled is not None:
        made[COMPILED] = by_numba
    return made


def check(paths: Sequence[Path]) -> None:
    """Raises PipelineError when a way makes a sample that is not the reference's."""
    for name, make in ways().items():
        for path in paths:
            sample = make(path)
            if sample is not None and not np.array_equal(sample, reference_sample(path)):
                raise PipelineError(f"{path}: the sample of {name!r} differs from the reference's")


def time_turn(name: str, paths: Sequence[Path]) -> float:
    """CPU seconds per image of one turn over `paths`. Runs in the way's own process."""
    make = ways()[name]
    begin = time.process_time()
    for path in paths:
        make(path)
    return (time.process_time() - begin) / len(paths)


def measure(paths: Sequence[Path], repeat: int) -> list[Figure]:
    """Time `repeat` turns of every way over `paths`, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        own = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in seconds}
        for turn in range(repeat + 1):
            for name, process in own.items():
                taken = process.submit(time_turn, name, paths).result()
                if turn > 0:
                    seconds[name].append(taken)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    return [
        Figure(name, 1e3 * s, 1 / s, median[DECODE] / s, median[REFERENCE] / s, median[PLAIN] / s)
        for name, s in median.items()
    ]


def show(figures: Sequence[Figure], images: int, repeat: int) -> None:
    table = Table(title=f"{images} images, {repeat} turns, one core (CPU time)")
    table.add_column("way", no_wrap=True)
    for heading in ("ms", "images/s", "to\ndecode", "to\ntorchvision", "to\nplain"):
        table.add_column(heading, justify="right", no_wrap=True)
    for f in figures:
        table.add_row(
            f.name,
            f"{f.ms_per_image:.2f}",
            f"{f.images_per_s:.0f}",
            f"{f.to_decode:.2f}",
            f"{f.to_reference:.2f}",
            f"{f.to_plain:.2f}",
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--images", type=Path, default=DEMO_IMAGES, help="a folder (the bundled images)")
    parser.add_argument("--repeat", type=int, default=7, help="turns of each way (7)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat: at least 1")
    try:
        paths = SampleLibrary.from_images(options.images).paths
        check(paths)
    except PipelineError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    figures = measure(paths, options.repeat)
    show(figures, len(paths), options.repeat)
    if options.json is not None:
        record = {
            "images": str(options.images),
            "count": len(paths),
            "repeat": options.repeat,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "figures": [asdict(f) for f in figures],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
