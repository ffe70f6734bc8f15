"""Rows per second of each sink and sources per second of each listing, in CPU seconds of one process.

`python -m benchmarks.sinks`; `taskset -c 0` keeps pyarrow's threads on one core too.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.samples.expand import expand
from pipeline.samples.keys import KeySet
from pipeline.sinks.opening import open_sink
from pipeline.sinks.rows import Rows

TOP = 5
CLASSES = 1000
MEMBERS = ("cls", "jpg", "json")


def batches(rows: int, batch: int) -> list[Rows]:
    """Answers with keys as ImageNet has them, random classes and scores, an error in a thousand."""
    rng = np.random.default_rng(0)
    keys = [f"imagenet/train/n{n % CLASSES:08}/n{n:08}.JPEG" for n in range(rows)]
    ids = rng.integers(0, CLASSES, (rows, TOP), dtype=np.int32)
    scores = -np.sort(-rng.random((rows, TOP), dtype=np.float32), axis=1)
    return [
        Rows(
            keys[n : n + batch], ids[n : n + batch, 0], scores[n : n + batch, 0], ids[n : n + batch],
            scores[n : n + batch], {0: "damaged or cut short"} if n // batch % max(1000 // batch, 1) == 0 else {},
        )
        for n in range(0, rows, batch)
    ]  # fmt: skip


def size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def sinks(folder: Path, rows: int, batch: int) -> None:
    made = batches(rows, batch)
    names = [f"class number {n}" for n in range(CLASSES)]
    print(f"{'sink':12} {'rows/s':>12} {'with the end':>13} {'B/row':>6}")
    for out in ("a.parquet", "parts/", "a.csv", "a.jsonl"):
        start = time.process_time()
        with open_sink(f"{folder}/{out}", identity={"model": "none"}, class_names=names) as sink:
            for some in made:
                sink.write(some)
            written = time.process_time() - start
        ended = time.process_time() - start
        print(f"{out:12} {rows / written:12,.0f} {rows / ended:13,.0f} {size_of(folder / out) / rows:6.0f}")


def listings(folder: Path, count: int) -> None:
    (folder / "d").mkdir()
    for n in range(count):
        (folder / "d" / f"{n:08}.jpg").touch()
    (folder / "l.txt").write_text("".join(f"d/{n:08}.jpg\n" for n in range(count)))
    with tarfile.open(folder / "s.tar", "w") as tar:
        for n in range(count):
            for ending in MEMBERS:
                info = tarfile.TarInfo(f"{n:08}.{ending}")
                info.size = 10_000 if ending == "jpg" else 1
                tar.addfile(info, io.BytesIO(bytes(info.size)))
    print(f"\n{'listing':12} {'sources/s':>12} {'first, s':>9}")
    for name in ("d", "@l.txt", "s.tar"):
        argument = f"@{folder / name[1:]}" if name.startswith("@") else str(folder / name)
        start = time.process_time()
        sources = expand([argument])
        next(sources)
        first = time.process_time() - start
        total = 1 + sum(1 for _ in sources)
        print(f"{name:12} {total / (time.process_time() - start):12,.0f} {first:9.3f}")


def key_set(count: int) -> None:
    keys = KeySet()

    def rate(use: Callable[[str], object]) -> float:
        start = time.process_time()
        for n in range(count):
            use(f"imagenet/train/{n:08}.JPEG")
        return count / (time.process_time() - start)

    print(f"\nkeys done: {rate(keys.add):,.0f} added/s, {rate(keys.__contains__):,.0f} looked up/s")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sinks", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256, help="rows that come at a time (default %(default)s)")
    parser.add_argument("--files", type=int, default=50_000, help="files of each listing (default %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sinks(Path(folder), args.rows, args.batch)
        listings(Path(folder), args.files)
    key_set(args.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
