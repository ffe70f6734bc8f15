"""What the driver keeps of a run on Ray: bytes of its own a block, of the classify command and of Ray Data alone.

`python -m benchmarks.ray_driver`. Both list names in a task, part them into small blocks, pass these to an actor
and through tasks again; those of Ray alone do nothing with them. The names are of no files, so that a block costs
no more than its tasks. Some blocks go before, for what the first ones need.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from int4core.random_model import random_model
from pipeline.classify.__main__ import main as classify
from pipeline.extras import require
from pipeline.ray.listing import TASK_CPUS
from pipeline.ray.run import BATCHES_OF_A_TASK, LOCAL, TASKS_OF_A_PART, connect

BATCH = 8
ROWS = BATCH * BATCHES_OF_A_TASK[False]
BLOCKS_AT_A_TIME = 64


def names(blocks: int) -> list[str]:
    return [f"/none/{number}.jpg" for number in range(blocks * ROWS)]


def by_command(folder: Path, blocks: int) -> None:
    """The command over a list of `blocks` blocks."""
    listed = folder / f"{blocks}.txt"
    listed.write_text("".join(f"{name}\n" for name in names(blocks)))
    arguments = [f"@{listed}", "--model", str(folder / "model"), "--gpu", "cpu", "--loaders", "1", "-b", str(BATCH)]
    with redirect_stdout(sys.stderr):
        status = classify([*arguments, "--no-dashboard", "--ray", LOCAL, "--out", f"{folder}/{blocks}/"])
    if status:
        raise SystemExit(status)


class Nothing:
    """An actor that gives back what it gets."""

    def __call__(self, table: Any) -> Any:
        return table


def by_ray_alone(ray: Any, blocks: int) -> None:
    """Ray Data's operators in the same order, with nothing to do."""

    def listing(_table: Any) -> Iterator[Any]:
        arrow = require("pyarrow", "ray", "this benchmark")
        keys = names(blocks)
        for begin in range(0, len(keys), BLOCKS_AT_A_TIME * ROWS):
            yield arrow.table({"key": keys[begin : begin + BLOCKS_AT_A_TIME * ROWS]})

    def written(table: Any) -> Any:
        return table.slice(0, 1)

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    answers = (
        ray.data.from_items([{"part": 0}], override_num_blocks=1)
        .map_batches(listing, batch_size=1, batch_format="pyarrow", num_cpus=TASK_CPUS)
        .repartition(target_num_rows_per_block=ROWS)
        .map_batches(
            Nothing,
            batch_size=BATCH,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        .map_batches(written, batch_size=ROWS * TASKS_OF_A_PART, batch_format="pyarrow", num_cpus=TASK_CPUS)
    )
    for _ in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def own_memory() -> int:
    """Bytes of this process that are its own."""
    gc.collect()
    return 1024 * int(re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[0])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_driver", description=__doc__)
    parser.add_argument("--blocks", type=int, default=800, help="that are counted (default %(default)s)")
    parser.add_argument("--before", type=int, default=400, help="blocks that go before (default %(default)s)")
    args = parser.parse_args(argv)
    connection = connect(LOCAL)
    with tempfile.TemporaryDirectory() as folder:
        random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3).save(Path(folder) / "model")
        ways: dict[str, Callable[[int], None]] = {
            "Ray alone": lambda blocks: by_ray_alone(connection.library, blocks),
            "the command": lambda blocks: by_command(Path(folder), blocks),
        }
        for name, run in ways.items():
            run(args.before)
            before = own_memory()
            run(args.blocks)
            print(f"{name}: {(own_memory() - before) / args.blocks / 1e3:.1f} kB a block, of {args.blocks} blocks")
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
