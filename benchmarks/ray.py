"""Images per second through Ray Data against the same session without Ray, from a Parquet table of bytes.

`python -m benchmarks.ray`. Direct, Ray, direct, Ray, ... on the same table and machine. The time begins where the first
table of answers is made, by the clock of who makes it, so that no start counts and nothing that is ready before anyone
looks is a gift; it ends where the last one has come. The medians and their ratio are printed last.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from int4core.random_model import random_model
from pipeline.extras import require
from pipeline.ray import Classifier
from pipeline.ray.cluster import CALLS, lay_out, nodes
from pipeline.ray.dataset import map_images
from pipeline.ray.run import LOCAL, connect

SIDE = 96
SEED = 5
DIFFERENT = 64
ROWS_OF_A_GROUP = 1024
MADE = "made_s"


def make_table(path: Path, images: int) -> None:
    """A table of JPEG files of SIDE x SIDE pixels."""
    arrow, parquet = require("pyarrow", "ray", "this benchmark"), require("pyarrow.parquet", "ray", "this benchmark")
    rng = np.random.default_rng(SEED)
    files = []
    for _ in range(DIFFERENT):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    table = arrow.table({"id": range(images), "image": [files[n % DIFFERENT] for n in range(images)]})
    parquet.write_table(table, path, row_group_size=ROWS_OF_A_GROUP)


class Timed(Classifier):
    """Notes in the column MADE when it has made a table, in seconds of the machine's clock."""

    def __call__(self, table: Any) -> Any:
        arrow, out = require("pyarrow", "ray", "this benchmark"), super().__call__(table)
        return out.append_column(MADE, arrow.array([time.monotonic()] * len(out)))


def rate(tables: Iterable[Any]) -> float:
    """Rows/s from the first table that was made, which does not count, to the arrival of the last."""
    made = sorted((table[MADE][0].as_py(), len(table)) for table in tables)
    return float(sum(rows for _, rows in made[1:]) / (time.monotonic() - made[0][0]))


def direct(path: Path, options: dict[str, Any], batch: int) -> Iterator[Any]:
    """The answers of one session that takes as many calls side by side as an actor does."""
    arrow, parquet = require("pyarrow", "ray", "this benchmark"), require("pyarrow.parquet", "ray", "this benchmark")
    classifier = Timed(**options)
    tables = (arrow.Table.from_batches([some]) for some in parquet.ParquetFile(path).iter_batches(batch))
    with ThreadPoolExecutor(CALLS) as calls:
        waiting = [calls.submit(classifier, table) for table in islice(tables, CALLS)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [calls.submit(classifier, table) for table in islice(tables, 1)]
    classifier.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder (default: a tiny one with random weights)")
    parser.add_argument("--images", type=int, default=40_000, help="rows of the table (default %(default)s)")
    parser.add_argument("-b", "--batch", type=int, default=1024, help="of the engine (default %(default)s)")
    parser.add_argument("--gpu", default="auto", help="see the classify command (default %(default)s)")
    parser.add_argument("--actors", type=int, default=1, help="of Ray (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each (default %(default)s)")
    args = parser.parse_args(argv)
    connection = connect(LOCAL)
    ray = connection.library
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "images.parquet", args.model
        make_table(path, args.images)
        if model is None:
            model = Path(folder) / "model"
            random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3).save(model)
        layout = lay_out(nodes(ray), args.gpu, args.actors)
        options = {"model": model, "gpu": args.gpu, "batch_size": args.batch, "loaders": layout.loaders}
        print(f"{args.images:,} images of {SIDE} x {SIDE}, batch {args.batch:,}; {layout}")
        rates: dict[str, list[float]] = {"direct": [], "Ray": []}
        for _ in range(args.turns):
            rates["direct"].append(rate(direct(path, options, args.batch)))
            # As `pipeline.ray.classify` does it.
            table = ray.data.read_parquet(str(path)).repartition(target_num_rows_per_block=args.batch)
            dataset = map_images(table, Timed, options, layout, batch=args.batch)
            rates["Ray"].append(rate(dataset.iter_batches(batch_size=None, batch_format="pyarrow")))
            print("  ".join(f"{name} {values[-1]:,.0f} images/s" for name, values in rates.items()))
    alone, together = median(rates["direct"]), median(rates["Ray"])
    print(f"medians: direct {alone:,.0f}, Ray {together:,.0f} images/s: {together / alone:.1%}")
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
