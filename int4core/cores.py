"""How many cores there are for us: the one place where they are counted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Whole cores of work that the scheduler and the CPU quota of a container or service allow; at least 1."""
    return whole_cores(scheduled_cores(), cpu_quota())


def scheduled_cores() -> int:
    """Cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def whole_cores(scheduled: int, quota: float | None) -> int:
    """What `scheduled` cores come to under a quota, which may be a part of a core; at least 1."""
    return max(1, scheduled if quota is None else min(scheduled, math.floor(quota)))


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> float | None:
    """Cores that the quotas of our control group and of those above it leave, the least of them; None without one.

    Read by version 2 of the interface and by version 1.
    """
    quotas = [quota for folder in _groups(root, own) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """Folders of our group and of those above it, as far as they are visible; in a container it is the root."""
    yield from (root, root / "cpu")
    for line in _read(own).splitlines():
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = PurePosixPath(path.lstrip("/"))
        if ".." in parts.parts or not (controllers == "" or "cpu" in controllers.split(",")):
            continue
        base = root / "cpu" if controllers else root
        yield from (base / part for part in (parts, *parts.parents))


def _quota_of(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()
    if len(words) != 2:
        words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
    quota, period = words
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
