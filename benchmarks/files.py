"""From files in the page cache to a table of classes: images/s, cores, images per joule, and every row compared.

    python -m benchmarks.files --images ../shared/imagenet/sample200 --files 1800000 --batches 1024x4,1024x6,2048x4
    python -m benchmarks.files --images ../shared/imagenet/sample200 --sources small --decode gpu,cpu

- list: a list of paths, one for each file. tar: shards of --members images. small: a list of the images as JPEGs of
  32 KiB, scaled down as far as it takes.
- The images come under as many names as make --files, by links, so that they stay in memory. Every row has to be that
  of the same image in a run over the images alone, decoded by loaders: class, best five and scores, bit for bit.
- Cores are those busy with all processes, with the main one (main) and with the busiest of the others (top), while the
  run is at work.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.host_load import HostLoad, watch
from benchmarks.sections import add_sections
from int4core.errors import Int4CoreError, printed
from pipeline.defaults import DEMO_IMAGES, default_model
from pipeline.errors import PipelineError
from pipeline.extras import require
from pipeline.machine.cpu import CPU_BACKENDS
from pipeline.machine.hardware import default_loaders
from pipeline.samples.library import IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("list", "tar", "small")
DECODERS = ("auto", "gpu", "cpu")
SMALL_BYTES = 32 << 10
SMALL_QUALITY = 90
SMALL_TRIES = 4
TIMEOUT_S = 900.0
# Before an image's own name in a shard, so that each name is there once.
MARK = "{:08}-"
COLUMNS = ("class_id", "score", "top_ids", "top_scores")


def smaller(folder: Path, images: Sequence[Path], size: int = SMALL_BYTES) -> list[Path]:
    """The images as JPEGs of about `size` bytes in `folder`: scaled down, and none of them up."""
    folder.mkdir()
    made = []
    for image in images:
        path = folder / f"{image.name}.jpg"
        with Image.open(image) as file:
            pixels = file.convert("RGB")
        scale = 1.0
        for _ in range(SMALL_TRIES):
            sides = [max(1, round(scale * side)) for side in pixels.size]
            pixels.resize((sides[0], sides[1])).save(path, quality=SMALL_QUALITY)
            scale = min(1.0, scale * (size / path.stat().st_size) ** 0.5)
        made.append(path)
    return made


def listed(folder: Path, images: Sequence[Path], count: int) -> Path:
    """A list of `count` names: of links to a folder that has a link to each image."""
    once = folder / "once"
    once.mkdir()
    for image in images:
        (once / image.name).symlink_to(image)
    path = folder / "files.txt"
    with path.open("w") as file:
        for number in range(-(-count // len(images))):
            link = folder / f"{number:06}"
            link.symlink_to(once)
            left = count - number * len(images)
            file.writelines(f"{link}/{image.name}\n" for image in images[:left])
    return path


def sharded(folder: Path, images: Sequence[Path], count: int, members: int) -> Path:
    """A list of shards with `count` images or somewhat more: links to one of `members`."""
    once = folder / "once.tar"
    with tarfile.open(once, "w") as tar:
        for number, image in enumerate(islice(cycle(images), members)):
            tar.add(image, MARK.format(number) + image.name)
    path = folder / "shards.txt"
    shards = [folder / f"{number:06}.tar" for number in range(-(-count // members))]
    for shard in shards:
        shard.symlink_to(once)
    path.write_text("".join(f"{shard}\n" for shard in shards))
    return path


class Rows:
    """The answers to the images, from a table of them, to compare others with."""

    def __init__(self, table: Path) -> None:
        self._parquet = require("pyarrow.parquet", "data", "comparing tables")
        found = self._parquet.read_table(table).to_batches(max_chunksize=1 << 30)[0]
        self._place = {Path(key).name: place for place, key in enumerate(found["key"].to_pylist())}
        self._answers = self._columns(found)

    def wrong(self, table: Path) -> tuple[int, int]:
        """How many rows of `table` there are, and how many are not as they should be."""
        rows = wrong = 0
        for batch in self._parquet.ParquetFile(table).iter_batches():
            names = [Path(key).name for key in batch["key"].to_pylist()]
            places = [self._place[name if name in self._place else name[len(MARK.format(0)) :]] for name in names]
            good = np.ones(len(places), np.bool_)
            for mine, theirs in zip(self._columns(batch), self._answers, strict=True):
                good &= (mine == theirs[places]).all(axis=1)
            rows, wrong = rows + len(good), wrong + int((~good).sum())
        return rows, wrong

    @staticmethod
    def _columns(batch: Any) -> tuple[Any, ...]:
        """COLUMNS as arrays (n, k). Raises PipelineError for a row with an error."""
        if batch["error"].null_count != len(batch):
            raise PipelineError(f"rows with errors: {batch['error'].drop_null()[0]}")
        flat = [batch[name].flatten() if name.startswith("top") else batch[name] for name in COLUMNS]
        return tuple(column.to_numpy().reshape(len(batch), -1) for column in flat)


def measure(options: argparse.Namespace) -> int:
    """Prints the table; how many rows were wrong."""
    images = sorted(p.resolve() for p in options.images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise PipelineError(f"{options.images}: no image in it")
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common = ["--model", (options.model or default_model()).resolve(), "--gpu", options.gpu]
        common += ["--cpu-backend", options.cpu_backend]

        def run(source: object, name: str, *given: object) -> tuple[dict[str, Any], HostLoad]:
            summary = folder / f"{name}.json"
            command = ["pipeline.classify", source, *common, "--out", folder / f"{name}.parquet", "--summary", summary]
            load = watch([*command, *given], ROOT, (), TIMEOUT_S)
            return json.loads(summary.read_text()), load

        def answers(images: Path, name: str) -> Rows:
            run(images, name, "--decode", "cpu")
            return Rows(folder / f"{name}.parquet")

        expected = answers(options.images.resolve(), "expected")
        titles = f"{'images':>11}{'images/s':>10}{'cores':>7}{'main':>6}{'top':>5}{'/J':>6}{'wrong':>7}"
        print(f"{'':6}{'decode':>7}{'batch':>6}{'lanes':>6}{titles}")
        for kind in options.sources:
            (folder / kind).mkdir()
            right = expected
            if kind == "tar":
                source = sharded(folder / kind, images, options.files, options.members)
            elif kind == "list":
                source = listed(folder / kind, images, options.files)
            else:
                source = listed(folder / kind, smaller(folder / "scaled", images), options.files)
                right = answers(folder / "scaled", "expected-small")
            for decode, (batch, lanes) in product(options.decode, options.batches):
                name = f"{kind}-{decode}-{batch}-{lanes}"
                told, load = run(
                    f"@{source}", name, "--decode", decode, "--loaders", options.loaders, "-b", batch,
                    "--inflight", lanes,
                )  # fmt: skip
                rows, bad = right.wrong(folder / f"{name}.parquet")
                wrong += bad
                (folder / f"{name}.parquet").unlink()
                rate, energy = told["throughput"]["samples_per_second_mean"], told["energy"] or {}
                busy = f"{load.cores or 0:7.1f}{load.main_cores or 0:6.2f}{load.busiest_cores or 0:5.2f}"
                busy += f"{energy.get('images_per_joule') or 0:6.0f}"
                said = told["verdict"]["sentences"][0]
                print(f"{kind:6}{decode:>7}{batch:6}{lanes:6}{rows:11,}{rate:10,.0f}{busy}{bad:7,}  {said}", flush=True)
    return wrong


def batch_and_lanes(text: str) -> list[tuple[int, int]]:
    """`1024x4,2048x4`: sizes of batches, each with how many are in flight."""
    try:
        return [(int(batch), int(lanes)) for batch, lanes in (part.split("x") for part in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: it takes BATCHxINFLIGHT,..., as in 1024x4,2048x4") from None


def decoders(text: str) -> list[str]:
    """`gpu,cpu`: what `--decode` of the command takes, one after the other."""
    found = text.split(",")
    if not set(found) <= set(DECODERS):
        raise argparse.ArgumentTypeError(f"{text}: it takes some of {', '.join(DECODERS)}, as in gpu,cpu")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=DEMO_IMAGES, help="a folder of images (default: %(default)s)")
    parser.add_argument("--files", type=int, default=200_000, help="names of them (default: %(default)s)")
    parser.add_argument("--members", type=int, default=20_000, help="images of a shard (default: %(default)s)")
    add_sections(parser, SOURCES, "--sources")
    parser.add_argument(
        "--batches", type=batch_and_lanes, default="1024x4", help="BATCHxINFLIGHT,... (default: %(default)s)"
    )
    parser.add_argument("--decode", type=decoders, default="auto", help="as of the command, or several (default: auto)")
    parser.add_argument("--gpu", default="auto", help="as of the command (default: %(default)s)")
    parser.add_argument(
        "--cpu-backend", choices=CPU_BACKENDS, default="auto", help="as of the command (default: %(default)s)"
    )
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the one provided)")
    parser.add_argument("--loaders", type=int, default=default_loaders(), help="(default: by cores)")
    options = parser.parse_args(argv)
    try:
        wrong = measure(options)
    except (PipelineError, Int4CoreError) as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
