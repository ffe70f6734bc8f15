from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline.machine import room
from pipeline.machine.room import slots_that_fit
from pipeline.memory.arena import ArenaSpec

SLOT = ArenaSpec("", 1, (3, 224, 224)).slot_bytes
GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`shm` and `memory` are its free bytes."""
    has = SimpleNamespace(shm=64 * GIB, memory=64 * GIB)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=has.shm // 4096, f_frsize=4096))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=has.memory))
    return has


def test_75_gb_hold_imagenets_validation_images(machine: SimpleNamespace, tmp_path: Path) -> None:
    machine.shm = 7_530_000_000
    assert slots_that_fit(SLOT, tmp_path, tmp_path) == 50_023
    machine.shm, machine.memory = 64 * GIB, 7_530_000_000 + GIB
    assert slots_that_fit(SLOT, tmp_path, tmp_path) == 50_023


def test_a_share_is_left_of_much_memory(machine: SimpleNamespace, tmp_path: Path) -> None:
    assert slots_that_fit(SLOT, tmp_path, tmp_path) == int(0.95 * 64 * GIB) // SLOT
    machine.memory = GIB // 2
    assert slots_that_fit(SLOT, tmp_path, tmp_path) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_limit_leaves(machine: SimpleNamespace, tmp_path: Path, version: int) -> None:
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}[version]
    (folder / names[0]).write_text(f"{8 * GIB}\n")
    (folder / names[1]).write_text(f"{3 * GIB}\n")
    assert slots_that_fit(SLOT, tmp_path, tmp_path) == 4 * GIB // SLOT
    field = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{field} {GIB}\n")
    assert slots_that_fit(SLOT, tmp_path, tmp_path) == 5 * GIB // SLOT
    (folder / names[0]).write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert room._left_in_container(tmp_path) is None
