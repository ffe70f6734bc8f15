"""How much shared memory a run may take: what is free of the folder, of the machine, and of the container."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from pipeline.memory.arena import segment_folder

# Left to engines, loaders and all else; a share of what is free where that is more.
LEAVE_BYTES = 1 << 30
LEAVE_SHARE = 0.05

CGROUP = Path("/sys/fs/cgroup")


def slots_that_fit(slot_bytes: int, folder: Path | None = None, cgroup: Path = CGROUP) -> int:
    """How many slots of `slot_bytes` a new arena in `folder` (default: where arenas are made) may have.

    7.5 GB are the slots of ImageNet's 50,000 validation images.
    """
    folder = segment_folder() if folder is None else folder
    free = os.statvfs(folder)
    memory = int(psutil.virtual_memory().available)
    left = _left_in_container(cgroup)
    if left is not None:
        memory = min(memory, left)
    memory -= max(LEAVE_BYTES, int(LEAVE_SHARE * memory))
    return max(0, min(free.f_bavail * free.f_frsize, memory)) // slot_bytes


def _left_in_container(root: Path) -> int | None:
    """Bytes below the limit of a container, by version 2 of the interface, else version 1; None without a limit.

    What files have cached counts as left: it is given up when it is needed.
    """
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        most, now = _number(root / limit), _number(root / used)
        # Version 1 writes "no limit" as the largest number of whole pages.
        if most is not None and now is not None and most < 1 << 60:
            return most - now + _field(root / stat, cached)
    return None


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _field(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
