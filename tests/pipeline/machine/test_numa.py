from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.machine.numa import cores_near, parse_cores, pin


def machine(root: Path, nodes: dict[int, str], gpus: dict[str, int]) -> tuple[Path, Path]:
    for node, cores in nodes.items():
        (root / "nodes" / f"node{node}").mkdir(parents=True)
        (root / "nodes" / f"node{node}" / "cpulist").write_text(cores + "\n")
    for bus_id, node in gpus.items():
        (root / "devices" / bus_id).mkdir(parents=True)
        (root / "devices" / bus_id / "numa_node").write_text(f"{node}\n")
    return root / "devices", root / "nodes"


def test_cores_of_each_gpus_node(tmp_path: Path) -> None:
    where = machine(tmp_path, {0: "0-3,8", 1: "4-7"}, {"0000:1b:00.0": 0, "0000:c3:00.0": 1})
    near = cores_near(("00000000:C3:00.0", "00000000:1B:00.0"), *where)
    assert near == (frozenset({4, 5, 6, 7}), frozenset({0, 1, 2, 3, 8}))


@pytest.mark.parametrize(
    ("nodes", "gpus"),
    [({0: "0-3"}, {"0000:1b:00.0": 0}), ({0: "0", 1: "1"}, {"0000:1b:00.0": -1})],
    ids=["one node", "a system that does not report it"],
)
def test_where_there_is_nothing_to_choose(tmp_path: Path, nodes: dict[int, str], gpus: dict[str, int]) -> None:
    assert cores_near(("00000000:1B:00.0",), *machine(tmp_path, nodes, gpus)) == ()


def test_a_gpu_the_system_does_not_know(tmp_path: Path) -> None:
    assert cores_near(("00000000:1B:00.0",), *machine(tmp_path, {0: "0", 1: "1"}, {})) == ()


def test_lists_of_cores() -> None:
    assert parse_cores("0-2,7") == {0, 1, 2, 7}
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cores("")


def test_a_process_stays_where_it_may_run() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin((), 0)
        assert os.sched_getaffinity(0) == before
        pin((frozenset({10**5}),), 0)
        assert os.sched_getaffinity(0) == before, "none of these cores is ours"
        one = min(before)
        pin((frozenset({10**5}), frozenset({one})), 3)
        assert os.sched_getaffinity(0) == {one}
    finally:
        os.sched_setaffinity(0, before)
