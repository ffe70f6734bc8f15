"""A writer that is killed at random moments, and what its output must be once it is left alone.

`python -m tests.pipeline.sinks.kills --kills 60` does it as often; the tests do a few.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pipeline.sinks.opening import open_sink
from tests.paths import ROOT
from tests.pipeline.sinks.made import CLASSES, IDENTITY, as_tuples, made

KEYS = [f"d/{n}.jpg" for n in range(3000)]
BATCH = 7
SECONDS_PER_BATCH = 0.0005
MEAN_SECONDS = 0.15


def write(out: str) -> None:
    """What a run does: pass over what is done, write the rest in small parts, finish."""
    with open_sink(out, identity=IDENTITY, class_names=CLASSES, rows_per_part=40) as sink:
        print("open", flush=True)
        todo = [] if sink.complete else [key for key in KEYS if key not in sink.done]
        for start in range(0, len(todo), BATCH):
            sink.write(made(todo[start : start + BATCH]))
            time.sleep(SECONDS_PER_BATCH)


def kill_and_go_on(out: str, kills: int, seed: int) -> None:
    """Kill a writer of `out` `kills` times; whenever it is done in between, all is checked and it begins anew."""
    rng = random.Random(seed)
    hit = 0
    while hit < kills:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.sinks.kills", "--write", out],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.expovariate(1 / MEAN_SECONDS))
            process.kill()
        assert Path(out).exists() or Path(f"{out}.parts").exists()
        if process.returncode == 0:
            check(out)
            remove(out)
        else:
            hit += 1
    check(out)


def check(out: str) -> None:
    """Every key is there once, before and after the rest is written, and all rows are what they must be."""
    with open_sink(out, identity=IDENTITY, class_names=CLASSES) as sink:
        seen = [key for rows in sink.earlier() for key in rows.keys]
        assert len(seen) == len(set(seen)) == sink.rows
        if not sink.complete:
            assert len(sink.done) == len(seen)
            sink.write(made([key for key in KEYS if key not in sink.done]))
    with open_sink(out, identity=IDENTITY, class_names=CLASSES) as sink:
        assert sink.complete
        found = [row for rows in sink.earlier() for row in as_tuples(rows)]
    expected = made(KEYS)
    assert found == as_tuples(expected)
    assert (sink.rows, sink.errors) == (len(KEYS), len(expected.errors))


def remove(out: str) -> None:
    if out.endswith("/"):
        shutil.rmtree(out)
    else:
        Path(out).unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", help="be the writer of this output")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.write:
        write(args.write)
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("a.parquet", "a.csv", "a.jsonl", "parts/")):
            kill_and_go_on(f"{folder}/{name}", args.kills // 4, args.seed + number)
            print(f"{name}: {args.kills // 4} kills, every key once, equal rows")


if __name__ == "__main__":
    main()
