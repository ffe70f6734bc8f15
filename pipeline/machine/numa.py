"""Which cores are near which GPU, on machines whose memory is in several places."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
NODES = Path("/sys/devices/system/node")


def cores_near(bus_ids: Sequence[str], devices: Path = DEVICES, nodes: Path = NODES) -> tuple[frozenset[int], ...]:
    """The cores of the memory node of each of these PCI devices (`0000:65:00.0`).

    Empty where there is nothing to choose: one node, or a system that does not report it.
    """
    if len(list(nodes.glob("node[0-9]*"))) < 2:
        return ()
    found = []
    for bus_id in bus_ids:
        try:
            node = int((devices / _short(bus_id) / "numa_node").read_text())
            cores = parse_cores((nodes / f"node{node}" / "cpulist").read_text())
        except (OSError, ValueError):
            return ()
        found.append(cores)
    return tuple(found)


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


def _short(bus_id: str) -> str:
    """The driver writes the domain with eight digits, the kernel with four, both in lower case there."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}"
