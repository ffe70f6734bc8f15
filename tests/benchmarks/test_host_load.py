"""What a watched run asked of its machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from benchmarks import host_load
from benchmarks.host_load import PcieCounters, Snapshots, memory_traffic, watch
from pipeline.errors import PipelineError

BURNED_S = 0.3
BURN = f"import time\nwhile time.process_time() < {BURNED_S}: pass\n"
# Processes that have used the CPU: one that has ended and one that waits, both below the one that is asked about.
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
child = subprocess.Popen([sys.executable, "-c", {BURN + 'print("burned", flush=True); input()'!r}],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
input()
child.communicate(b"\\n")
"""
# A command that is at work until somebody has looked at it.
AT_WORK = """
import pathlib, sys, time
assert sys.argv[1:] == ["x", "--json"], sys.argv
print('{"phase": "loading", "elapsed_s": 0.5, "completed": 0}', flush=True)
print("not a snapshot", flush=True)
print('{"phase": "running", "elapsed_s": 0.1, "completed": 0}', flush=True)
while not pathlib.Path("looked").exists(): time.sleep(0.01)
print('{"phase": "done", "elapsed_s": 0.1, "completed": 9}', flush=True)
"""


def test_the_cpu_seconds_of_all_processes_and_of_the_first() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        reading = host_load._read(process.pid)
        process.communicate("\n")
    assert reading is not None
    # The kernel counts in hundredths.
    assert reading.all_s - reading.main_s >= 2 * BURNED_S - 0.05
    assert [s >= BURNED_S - 0.05 for s in reading.others_s.values()] == [True]
    assert host_load._read(process.pid) is None


def test_readings_are_taken_while_the_run_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "at_work.py").write_text(AT_WORK)
    monkeypatch.setattr(host_load, "EVERY_S", 0.01)
    readings = iter(
        host_load._Reading(at_s, main_s, all_s, memory, others_s)
        for at_s, main_s, all_s, memory, others_s in (
            (10, 1, 5, 0, {7: 1, 8: 2, 9: 1}),
            (14, 3, 29, 8, {7: 9, 8: 16, 11: 99}),
        )
    )

    def read(_pid: int) -> host_load._Reading | None:
        reading = next(readings, None)
        if reading is None:
            (tmp_path / "looked").touch()
        return reading

    monkeypatch.setattr(host_load, "_read", read)
    load = watch(["at_work", "x"], tmp_path, (), 60)
    assert (load.seconds, load.cores, load.main_cores, load.busiest_cores) == (4, 6, 0.5, 3.5)
    assert load.memory_bytes_s == 2
    assert load.pcie_bytes_s is None


def test_answers_are_counted_between_snapshots_of_a_run_at_work() -> None:
    def line(phase: str, elapsed_s: float, completed: int) -> str:
        return json.dumps({"phase": phase, "elapsed_s": elapsed_s, "completed": completed})

    snapshots = Snapshots()
    snapshots.follow(["no snapshot", line("starting", 9.0, 0), line("running", 1.0, 100)])
    assert snapshots.at_work.is_set()
    assert snapshots.answers_s is None
    snapshots.follow([line("running", 3.0, 700), line("done", 0.0, 900)])
    assert not snapshots.at_work.is_set()
    assert snapshots.answers_s == 300


def test_a_run_that_fails_or_never_ends(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import sys; sys.exit('no luck')")
    with pytest.raises(PipelineError, match=r"fails --json ended with 1: no luck"):
        watch(["fails"], tmp_path, (), 60)
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)")
    with pytest.raises(PipelineError, match=r"did not end within 0\.1 s"):
        watch(["hangs"], tmp_path, (), 0.1)


def test_memory_is_counted_where_the_kernel_counts_it(tmp_path: Path) -> None:
    assert memory_traffic(tmp_path) is None
    for number, text in enumerate(("100\n", "23\n")):
        (tmp_path / f"mon_L3_0{number}").mkdir()
        (tmp_path / f"mon_L3_0{number}" / "mbm_total_bytes").write_text(text)
    assert memory_traffic(tmp_path) == 123
    (tmp_path / "mon_L3_00" / "mbm_total_bytes").write_text("Unavailable\n")
    assert memory_traffic(tmp_path) is None


def test_what_gpus_receive_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[int, Any] = {3: 1_000, 5: 2_000}

    def throughput(handle: int, counter: int) -> Any:
        assert counter == pynvml.NVML_PCIE_UTIL_RX_BYTES
        if said[handle] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return said[handle]

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPcieThroughput", throughput)
    with PcieCounters((3, 5)) as counters:
        assert counters.read() == 3e6
        said[5] = None
        assert counters.read() is None
    with PcieCounters(()) as counters:
        assert counters.read() is None
