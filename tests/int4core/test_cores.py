from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from int4core import cores
from int4core.backends.host import usable_cores as of_the_engine
from int4core.cores import cpu_quota, usable_cores, whole_cores
from pipeline import doctor
from pipeline.loadgen.options import build_parser
from pipeline.machine import hardware
from pipeline.session import session
from tests.paths import ROOT


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "50000 100000\n"}, 0.5),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/cpu.max": "100000 100000\n", "a.slice/b.service/cpu.max": "max 100000\n"},
            1.0,
        ),
        ("0::/../other\n", {"cpu.max": "max 100000\n"}, None),
        ("1:cpu,cpuacct:/docker/x\n", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        (
            "2:cpuacct:/y\n1:cpu:/x\n",
            {
                "cpu/x/cpu.cfs_quota_us": "300000\n",
                "cpu/x/cpu.cfs_period_us": "100000\n",
                "cpu/y/cpu.cfs_quota_us": "100000\n",
                "cpu/y/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("garbage\n", {"cpu.max": "garbage\n"}, None),
    ],
)
def test_the_quota_of_our_group_and_of_those_above_it(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(write(tmp_path / "root", files), write(tmp_path, {"own": own}) / "own") == quota


@pytest.mark.parametrize(("scheduled", "quota", "whole"), [(16, None, 16), (16, 3.9, 3), (16, 0.5, 1), (2, 4.0, 2)])
def test_cores_are_whole_and_at_least_one(scheduled: int, quota: float | None, whole: int) -> None:
    assert whole_cores(scheduled, quota) == whole


def test_the_scheduler_counts() -> None:
    code = (
        "import os; from int4core.cores import usable_cores\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_loaders_verdict_help_and_engine_count_by_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlperf_loadgen

    assert session.usable_cores is hardware.usable_cores is of_the_engine is usable_cores
    assert doctor.whole_cores is whole_cores
    monkeypatch.setattr(cores, "scheduled_cores", lambda: 64)
    monkeypatch.setattr(cores, "cpu_quota", lambda: 2.5)
    assert hardware.default_loaders() == 2
    assert "one per core, 2 here" in build_parser(mlperf_loadgen).format_help()
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    assert hardware.default_loaders() == 32
