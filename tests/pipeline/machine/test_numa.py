from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.machine import numa
from pipeline.machine.numa import (
    Node,
    cores_near,
    memory_nodes,
    named,
    node_of_device,
    parse_cores,
    pin,
    shares_of,
    shown,
    whereabouts,
)
from pipeline.memory.arena import Arena


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


def test_nodes_their_cores_and_their_memory(tmp_path: Path) -> None:
    _devices, nodes = machine(tmp_path, {10: "4-5", 2: "0-1", 3: ""}, {"0000:1b:00.0": 2})
    (nodes / "node2" / "meminfo").write_text("Node 2 MemTotal:       1024 kB\nNode 2 MemFree:         512 kB\n")
    (nodes / "node7").mkdir()  # of which nothing is reported
    assert memory_nodes(nodes) == (
        Node(2, frozenset({0, 1}), 1 << 20),
        Node(3, frozenset()),
        Node(10, frozenset({4, 5})),
    )
    assert memory_nodes(tmp_path / "none") == ()


def test_the_node_of_a_device(tmp_path: Path) -> None:
    devices, _nodes = machine(tmp_path, {}, {"0000:1b:00.0": 1, "0000:c3:00.0": -1})
    assert [node_of_device(bus, devices) for bus in ("00000000:1B:00.0", "0000:c3:00.0", "0000:00:00.0")] == [
        1,
        None,
        None,
    ]


def test_a_process_says_where_it_may_run_if_there_is_a_choice(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    one = machine(tmp_path / "one", {0: "0-999"}, {})[1]
    assert whereabouts(one) == ""
    two = machine(tmp_path / "two", {0: ",".join(map(str, mine)), 1: str(10**5)}, {})[1]
    assert whereabouts(two) == ", node 0"
    both = machine(tmp_path / "both", {0: str(mine[0]), 1: ",".join(map(str, mine)), 2: str(10**5)}, {})[1]
    assert whereabouts(both) == ", nodes 0 and 1"
    assert named([2, 0, 1]) == "nodes 0, 1 and 2"


def test_where_the_memory_of_an_arena_lies(tmp_path: Path) -> None:
    with Arena.create(40, (3, 64, 64)) as arena:
        path = arena.spec.path
        here = shares_of(path)
        maps = tmp_path / "numa_maps"
        maps.write_text(
            f"7f00 default file={path} mapped=4 N0=1 N1=2 kernelpagesize_kB=4\n"
            f"7f10 default file={path} N1=1 kernelpagesize_kB=4\n"
            f"7f20 default file={path}0 N0=100 kernelpagesize_kB=4\n7f30 default stack N2=9\n"
        )
        assert shares_of(path, maps) == {0: 0.25, 1: 0.75}
        assert shares_of(path, tmp_path / "none") == {}
    assert shares_of(path) == {}, "it is gone"
    if numa.MAPS.exists():
        assert sum(here.values()) == pytest.approx(1)
        assert here.keys() <= {node.number for node in memory_nodes()}
    assert (shown({1: 1.0}), shown({0: 0.25, 1: 0.75})) == ("on node 1", "25 % on node 0, 75 % on node 1")
