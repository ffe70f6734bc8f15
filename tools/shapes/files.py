"""Image files: JPEGs of varying size, aspect and quality, and the map file that names their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from int4core.cores import usable_cores
from tools.shapes.names import CLASSES, class_name
from tools.shapes.render import render

MAP_NAME = "map.txt"
HELD_OUT = 1 << 30
"""Seeds from here up are for made and test images; training draws its seeds from below."""

_EXIF_ORIENTATION = 0x0112
_ROTATE_90_TO_SHOW = 6


class ShapesError(Exception):
    """An image set that cannot be made as asked."""


@dataclass(frozen=True)
class ImageSpec:
    """One image file to be made.

    Attributes:
        label, seed: what `render` draws.
        height, width: in pixels, as shown.
        quality: JPEG quality, 1..95.
        kind: `plain`, or `grey` (one channel), `progressive` (several scans), `exif` (stored turned by
            90 degrees, with the EXIF tag that turns it back).
    """

    label: int
    seed: int
    height: int
    width: int
    quality: int
    kind: str = "plain"

    def file_name(self, index: int) -> str:
        return f"{index:05d}_{class_name(self.label).replace(' ', '_')}.jpg"


def pixels(spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """The image of `spec`, uint8 (height, width, 3)."""
    image = render(np.array([spec.label]), np.array([spec.seed]), spec.height, spec.width)[0]
    rounded: npt.NDArray[np.uint8] = np.rint(image.transpose(1, 2, 0) * 255.0).astype(np.uint8)
    return rounded


def write(spec: ImageSpec, path: Path) -> int:
    """Render `spec` into the JPEG file `path`; its size in bytes."""
    image = Image.fromarray(pixels(spec))
    exif = Image.Exif()
    if spec.kind == "grey":
        image = image.convert("L")
    elif spec.kind == "exif":
        exif[_EXIF_ORIENTATION] = _ROTATE_90_TO_SHOW
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(path, quality=spec.quality, progressive=spec.kind == "progressive", exif=exif)
    return path.stat().st_size


def draw_specs(count: int, seed: int) -> list[ImageSpec]:
    """`count` images of random classes, sizes (short side 256..448, aspect to 16:9) and qualities."""
    rng = np.random.default_rng([seed, count])
    specs = []
    for _ in range(count):
        short = int(rng.integers(256, 449))
        long = round(short * rng.uniform(1.0, 16 / 9))
        upright = rng.random() < 0.3
        specs.append(
            ImageSpec(
                label=int(rng.integers(CLASSES)),
                seed=HELD_OUT + int(rng.integers(HELD_OUT)),
                height=long if upright else short,
                width=short if upright else long,
                quality=int(rng.integers(86, 96)),
            )
        )
    return specs


def demo_specs() -> list[ImageSpec]:
    """The bundled images: 48 small ones, every shape, texture and hue among them, three of a rarer kind."""
    kinds = {11: "grey", 23: "progressive", 37: "exif"}
    rng = np.random.default_rng(2019)
    specs = []
    for i in range(48):
        short = int(rng.integers(232, 300))
        long = round(short * (1.0, 4 / 3, 3 / 2, 16 / 9)[i % 4])
        upright = i % 5 == 3
        specs.append(
            ImageSpec(
                label=(i % 10) * 100 + (i * 7 // 10 + i) % 10 * 10 + (3 * i + i // 10) % 10,
                seed=HELD_OUT + i,
                height=long if upright else short,
                width=short if upright else long,
                quality=85,
                kind=kinds.get(i, "plain"),
            )
        )
    return specs


def _write_one(job: tuple[ImageSpec, str]) -> None:
    write(job[0], Path(job[1]))


def make(specs: Sequence[ImageSpec], out: Path, jobs: int | None = None) -> Iterator[int]:
    """Write every image and the map file (`NAME<TAB>LABEL` a line) into `out`; yields how many are done.

    Raises ShapesError when `out` cannot be made or already holds a map file.
    """
    if (out / MAP_NAME).exists():
        raise ShapesError(f"{out / MAP_NAME} exists already: remove the folder, or name another with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{out}: cannot make this folder ({error.strerror}): name another with --out"
        raise ShapesError(why) from error
    names = [spec.file_name(i) for i, spec in enumerate(specs)]
    work = [(spec, str(out / name)) for spec, name in zip(specs, names, strict=True)]
    workers = min(jobs or usable_cores(), max(1, len(work) // 16))
    if workers == 1:
        for done, job in enumerate(work, start=1):
            _write_one(job)
            yield done
    else:
        with ProcessPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(_write_one, work, chunksize=4), start=1):
                yield done
    # The map comes last: a folder with a map is a whole one.
    lines = [f"{name}\t{spec.label}\n" for name, spec in zip(names, specs, strict=True)]
    (out / MAP_NAME).write_text("".join(lines), encoding="utf-8")


def contact_sheet(specs: Sequence[ImageSpec], columns: int, cell: int) -> Image.Image:
    """All images of `specs` on one sheet, each in the middle of a square of `cell` pixels."""
    rows = -(-len(specs) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    for i, spec in enumerate(specs):
        thumb = Image.fromarray(pixels(spec))
        thumb.thumbnail((cell - 4, cell - 4))
        row, column = divmod(i, columns)
        corner = (column * cell + (cell - thumb.width) // 2, row * cell + (cell - thumb.height) // 2)
        sheet.paste(thumb, corner)
    return sheet
