"""Nodes of memory: which cores and GPUs are near which, where processes run and where memory lies."""

from __future__ import annotations

import mmap
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

DEVICES = Path("/sys/bus/pci/devices")
NODES = Path("/sys/devices/system/node")
MAPS = Path("/proc/self/numa_maps")

# Pages of a file that are looked for, at most: enough for a share, little enough for a moment.
PAGES = 1024

Shares: TypeAlias = Mapping[int, float]
"""Of some memory, by the number of the node it lies on; empty where the system does not report it."""


@dataclass(frozen=True)
class Node:
    """A node of memory and the cores that are near it; `memory_bytes` is None where the system does not report it."""

    number: int
    cores: frozenset[int]
    memory_bytes: int | None = None


def memory_nodes(folder: Path | None = None) -> tuple[Node, ...]:
    """Those of this machine, by number; none on a system that does not report it."""
    found = []
    for place in (NODES if folder is None else folder).glob("node[0-9]*"):
        try:
            text = (place / "cpulist").read_text()
            cores = parse_cores(text) if text.strip() else frozenset[int]()  # a node may be memory alone
            found.append(Node(int(place.name.removeprefix("node")), cores, _memory_bytes(place / "meminfo")))
        except (OSError, ValueError):
            continue
    return tuple(sorted(found, key=lambda node: node.number))


def node_of_device(bus_id: str, devices: Path | None = None) -> int | None:
    """The node that a PCI device (`0000:65:00.0`) is near; None where the system does not report it."""
    try:
        number = int(((DEVICES if devices is None else devices) / _short(bus_id) / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None


def cores_near(
    bus_ids: Sequence[str], devices: Path | None = None, nodes: Path | None = None
) -> tuple[frozenset[int], ...]:
    """The cores of the memory node of each of these PCI devices.

    Empty where there is nothing to choose: one node, or a system that does not report it.
    """
    here = memory_nodes(nodes)
    if len(here) < 2:
        return ()
    cores = {node.number: node.cores for node in here}
    found = [cores.get(-1 if (number := node_of_device(bus_id, devices)) is None else number) for bus_id in bus_ids]
    return tuple(near for near in found if near) if all(found) else ()


def parse_cores(text: str) -> frozenset[int]:
    """`0-3,8,10-11` as numbers. Raises ValueError."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def pin(cores: Sequence[frozenset[int]], number: int) -> None:
    """Keep this process on the cores of place `number`, in turn, as far as it may run there at all."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0) & cores[number % len(cores)]
    if allowed:
        os.sched_setaffinity(0, allowed)


def whereabouts(folder: Path | None = None) -> str:
    """`, node 1` or `, nodes 0 and 1`: those this process may run on; empty on a machine of one node."""
    here = memory_nodes(folder)
    if len(here) < 2 or not hasattr(os, "sched_getaffinity"):
        return ""
    return f", {named([node.number for node in here if node.cores & os.sched_getaffinity(0)])}"


def named(numbers: Collection[int]) -> str:
    """`node 1`, `nodes 0 and 1`, `nodes 0, 1 and 2`."""
    words = [str(number) for number in sorted(numbers)]
    return f"node {words[0]}" if len(words) == 1 else f"nodes {', '.join(words[:-1])} and {words[-1]}"


def shares_of(path: str, maps: Path | None = None) -> Shares:
    """Where the memory of a shared file lies, by a sample of its pages; looking makes those that were not there yet."""
    counts: Counter[int] = Counter()
    path = os.path.realpath(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            # The kernel counts the pages that this process has seen.
            for offset in range(0, len(mapped), max(1, len(mapped) // PAGES // mmap.PAGESIZE) * mmap.PAGESIZE):
                mapped[offset]
            text = (MAPS if maps is None else maps).read_text()
    except (OSError, ValueError):
        return {}
    for line in text.splitlines():
        if f"file={path}" in line.split():
            for number, pages in re.findall(r"\bN(\d+)=(\d+)", line):
                counts[int(number)] += int(pages)
    return {number: pages / counts.total() for number, pages in sorted(counts.items())}


def shown(shares: Shares) -> str:
    """`on node 0`, `50 % on node 0, 50 % on node 1`."""
    if len(shares) == 1:
        return f"on {named(shares)}"
    return ", ".join(f"{100 * share:.0f} % on node {number}" for number, share in shares.items())


def _memory_bytes(meminfo: Path) -> int | None:
    try:
        found = re.search(r"MemTotal:\s*(\d+) kB", meminfo.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _short(bus_id: str) -> str:
    """The driver writes the domain with eight digits, the kernel with four, both in lower case there."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}"
