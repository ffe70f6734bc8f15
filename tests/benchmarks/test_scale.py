"""The arithmetic of a cluster: no simulation is faster than its least part, and the lines say what it comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale import Cluster, bound, main, simulate

CLUSTER = Cluster(5000.0, 100e3, 100e9, 8192, 0.005, 0.3)


@pytest.mark.parametrize(("gpus", "least"), [(1, "GPUs"), (100, "GPUs"), (1000, "storage")])
def test_a_simulation_stays_below_its_least_part(gpus: int, least: str) -> None:
    most, part = bound(CLUSTER, gpus)
    assert part == least
    assert 0.8 * most < simulate(CLUSTER, gpus, 20) <= 1.01 * most


def test_a_slow_driver_bounds_whatever_there_is() -> None:
    slow = replace(CLUSTER, task_s=1.0)
    assert bound(slow, 1000) == (8192.0, "driver")
    assert simulate(slow, 1000, 5) == pytest.approx(8192, rel=0.05)


def test_what_a_run_comes_to_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--tasks", "2", "--million", "1", "--task-images", "1000", "--row-bytes", "50", "--block-kb", "20"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "GPUs" in line and "bound" in line)
    for column in ("GB/s in", "MB/s out", "store MB/s", "$/M", "kJ/M", "hours"):
        assert column in head
    assert sum(line.lstrip()[:1].isdigit() for line in lines) == 7 + 1
    said = " ".join(lines[-2:])
    assert "a checkpoint of 0.1 GB in 500 files, 0.0 GB of digests" in said
    assert said.endswith("the head node keeps 0.02 GB of 1,000 tasks")
