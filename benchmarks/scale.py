"""How far a cluster goes, 1 to 1,000 GPUs: arithmetic, and a simulation of its driver, its storage and its actors.

`python -m benchmarks.scale`. All rates are parameters; docs/scale.md says which of the defaults were measured. The
simulation gives every actor tasks that a single driver hands out one after another; a task reads its images from a
storage whose bandwidth all share, and takes as long as the slower of reading and computing, give or take a spread.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

GPUS = (1, 2, 8, 32, 128, 512, 1000)
TASKS_OF_AN_ACTOR = 4
TASKS_OF_A_PART = 2
DIGEST_BYTES = 16
SEED = 5


@dataclass(frozen=True)
class Cluster:
    """Rates are per second.

    Attributes:
        gpu_rate: images that a GPU with its cores decodes and classifies.
        image_bytes: of a file.
        storage_rate: bytes that the storage gives to all together.
        task_images: of an actor's task.
        task_s: that the driver is busy with a task and those which go with it (listing, parting, writing).
        spread: of a task's time, as a share of it.
    """

    gpu_rate: float
    image_bytes: float
    storage_rate: float
    task_images: int
    task_s: float
    spread: float


def bound(cluster: Cluster, gpus: int) -> tuple[float, str]:
    """Images/s that the least of the parts allows, and which it is."""
    parts = {
        "GPUs": gpus * cluster.gpu_rate,
        "storage": cluster.storage_rate / cluster.image_bytes,
        "driver": cluster.task_images / cluster.task_s,
    }
    least = min(parts, key=lambda name: parts[name])
    return parts[least], least


def simulate(cluster: Cluster, gpus: int, tasks: int) -> float:
    """Images/s of `tasks` tasks for each GPU, from the first that is handed out to the last that ends."""
    chance = random.Random(SEED)
    reading_s = cluster.task_images * cluster.image_bytes / cluster.storage_rate
    computing_s = cluster.task_images / cluster.gpu_rate
    # When each actor has room for another task, and when it, the driver and the storage are done with what they have.
    room = [(0.0, actor) for actor in range(gpus) for _ in range(TASKS_OF_AN_ACTOR)]
    heapq.heapify(room)
    free_s = [0.0] * gpus
    driver_s = storage_s = end_s = 0.0
    for _ in range(gpus * tasks):
        asked_s, actor = heapq.heappop(room)
        driver_s = max(driver_s, asked_s) + cluster.task_s
        storage_s = max(storage_s, driver_s) + reading_s
        work_s = computing_s * (1 + cluster.spread * (2 * chance.random() - 1))
        free_s[actor] = max(free_s[actor], storage_s) + work_s
        heapq.heappush(room, (free_s[actor], actor))
        end_s = max(end_s, free_s[actor])
    return gpus * tasks * cluster.task_images / end_s


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--core-rate", type=float, default=345.0, help="images/s a core loads (default %(default)g)")
    parser.add_argument("--cores", type=float, default=15.0, help="cores that a GPU has for it (default %(default)g)")
    parser.add_argument("--engine-rate", type=float, default=125_399.0, help="images/s of a GPU (default %(default)g)")
    parser.add_argument("--image-kb", type=float, default=110.0, help="of a file (default %(default)g)")
    parser.add_argument("--storage-gbs", type=float, default=100.0, help="GB/s for all (default %(default)g)")
    parser.add_argument("--task-images", type=int, default=8192, help="of a task (default %(default)s)")
    parser.add_argument("--task-ms", type=float, default=5.0, help="of the driver for each (default %(default)g)")
    parser.add_argument("--spread", type=float, default=0.3, help="of a task's time (default %(default)g)")
    parser.add_argument("--tasks", type=int, default=50, help="simulated for each GPU (default %(default)s)")
    parser.add_argument("--hour", type=float, default=3.0, help="price of a GPU hour, $ (default %(default)g)")
    parser.add_argument("--watts", type=float, default=700.0, help="of a GPU (default %(default)g)")
    parser.add_argument("--row-bytes", type=float, default=34.0, help="of an answer in Parquet (default %(default)g)")
    parser.add_argument("--million", type=float, default=100.0, help="images, in millions (default %(default)g)")
    parser.add_argument("--block-kb", type=float, default=10.0, help="of the driver per task (default %(default)g)")
    parser.add_argument("--name-bytes", type=float, default=200.0, help="of a source in Ray (default %(default)g)")
    args = parser.parse_args(argv)
    cluster = Cluster(
        min(args.engine_rate, args.core_rate * args.cores),
        1e3 * args.image_kb,
        1e9 * args.storage_gbs,
        args.task_images,
        args.task_ms / 1e3,
        args.spread,
    )
    print(f"a GPU with {args.cores:g} cores: {cluster.gpu_rate:,.0f} images/s\n")
    print(
        f"{'GPUs':>5} {'bound/s':>11} {'by':8} {'simulated/s':>11} {'of GPUs':>8} {'GB/s in':>8} {'MB/s out':>8} "
        f"{'tasks/s':>8} {'store MB/s':>10} {'$/M':>7} {'kJ/M':>7} {'hours':>7}"
    )
    for gpus in GPUS:
        most, least = bound(cluster, gpus)
        rate = simulate(cluster, gpus, args.tasks)
        print(
            f"{gpus:5,} {most:11,.0f} {least:8} {rate:11,.0f} {rate / (gpus * cluster.gpu_rate):8.1%} "
            f"{rate * cluster.image_bytes / 1e9:8.1f} {rate * args.row_bytes / 1e6:8.1f} "
            f"{rate / args.task_images:8.1f} {rate * args.name_bytes / 1e6:10.1f} "
            f"{1e6 * gpus * args.hour / 3600 / rate:7.3f} {1e6 * gpus * args.watts / rate / 1e3:7.1f} "
            f"{1e6 * args.million / rate / 3600:7.2f}"
        )
    images = 1e6 * args.million
    tasks = math.ceil(images / args.task_images)
    print(
        f"\n{args.million:g} million images: a checkpoint of {images * args.row_bytes / 1e9:.1f} GB in "
        f"{math.ceil(tasks / TASKS_OF_A_PART):,} files, {images * DIGEST_BYTES / 1e9:.1f} GB of digests\n"
        "on each node that lists when it goes on; the head node keeps "
        f"{tasks * args.block_kb / 1e6:.2f} GB of {tasks:,} tasks"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
