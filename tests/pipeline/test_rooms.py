"""The rooms of pipeline/ and the direction of their imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

# From the ground up. A room imports those before it and itself, nothing after it; rooms in one line are neighbours
# that do not know each other.
FLOORS = (
    ("errors", "arrays", "collector", "words"),
    ("defaults", "extras"),
    ("memory", "telemetry", "samples"),
    ("machine", "jpeg"),
    ("device",),
    ("stages",),
    ("session", "report"),
    ("commands",),
    ("loadgen", "sinks"),
    ("ray",),
    ("classify",),
    ("offline", "doctor"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ADAPTERS = ("loadgen",)
"""Rooms that nothing but a command may import."""

MODULES = sorted((ROOT / "pipeline").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Rooms of pipeline/ that a module imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" if node.module == "pipeline" else str(node.module) for a in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("pipeline.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_imports_one_above_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in imported(path) - {room}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {other}"


@pytest.mark.parametrize("library", ["mlperf_loadgen", "rich", "argparse"])
def test_what_the_core_does_not_know(library: str) -> None:
    core = [p for p in MODULES if FLOOR_OF.get(room_of(p), 99) <= FLOOR_OF["session"] and room_of(p) != "report"]
    assert len(core) > 20
    for path in core:
        lines = path.read_text().splitlines()
        assert not [n for n in lines if n.split()[:1] in (["import"], ["from"]) and n.split()[1].startswith(library)]
