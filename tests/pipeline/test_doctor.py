from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import doctor
from pipeline.doctor import Finding, examine
from pipeline.errors import PipelineError
from pipeline.loadgen.installed import find_loadgen
from pipeline.machine import probe
from pipeline.machine.numa import Node
from pipeline.machine.probe import Cgroup, Driver, Facts, GpuFacts, Library, cupy_wheels, read_cgroup
from pipeline.machine.profilers import NCU, NSYS, find_profiler, require_profiler
from tests.paths import ROOT

GIB = 1 << 30
OF_THE_CPU = ["CPU backend", "LoadGen", "shared memory", "cores", "memory nodes"]
"""Checks of runs with `--gpu cpu`."""

H200 = GpuFacts(0, "NVIDIA H200", "h200", 140 * GIB, 141 * GIB)


@pytest.fixture
def healthy(tmp_path: Path) -> Facts:
    """A machine on which nothing is wrong."""
    (tmp_path / "h200").write_text("# engine: int4core\n# gpu: h200\n# origin: measured\nlayer1_residual1_conv2=1\n")
    return Facts(
        driver=Driver("580.95", (13, 0), (H200,)),
        wheels={"cupy-cuda13x": "14.2.0"},
        cupy=Library("14.2.0", "cupy"),
        nvrtc=Library("13.0", "libnvrtc.so.13"),
        loadgen=Library("6.0.17", "mlperf_loadgen.so"),
        shm_folder=Path("/dev/shm"),
        shm_free_bytes=64 * GIB,
        memlock_bytes=None,
        cores_visible=16,
        cpu_libraries={"torch": "2.13.0", "numba": "0.68.1"},
        cgroup=Cgroup(),
        memory_available_bytes=100 * GIB,
        autoconfig_folders=(tmp_path,),
        plan_bytes=lambda gpu: GIB,
        cache_folder=Path("cache"),
        cache_error="",
        nsys=Path("nsys"),
        ncu=Path("ncu"),
    )


def with_driver(facts: Facts, *, cuda: tuple[int, int] = (13, 0), gpus: tuple[GpuFacts, ...] = (H200,)) -> Facts:
    return replace(facts, driver=Driver("5", cuda, gpus))


def of(findings: tuple[Finding, ...], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def test_nothing_is_wrong_with_a_healthy_machine(healthy: Facts) -> None:
    findings = examine(healthy, "h200")
    assert [f for f in findings if f.status != "ok"] == []
    assert len({f.check for f in findings}) == len(findings) == 16
    assert not any(f.remedy for f in findings)


Change = Callable[[Facts], Facts]


@pytest.mark.parametrize(
    ("check", "status", "change", "said", "remedy"),
    [
        ("driver", "fail", lambda f: replace(f, driver="no NVML"), "no NVML", "install nvidia-open"),
        ("GPU", "fail", lambda f: replace(f, driver="no NVML"), "--gpu h200: not here", "--gpu auto"),
        ("kernels", "fail", lambda f: replace(f, plan_bytes=lambda _: "no kernel"), "no kernel", "--gpu cpu"),
        (
            "device memory",
            "warning",
            lambda f: with_driver(f, gpus=(replace(H200, free_bytes=GIB),)),
            "1.0 GiB free of 141.0 GiB; 3 batches of 1024 would take 3.0 GiB",
            "--batch_size 256",
        ),
        (
            "device memory",
            "fail",
            lambda f: with_driver(f, gpus=(replace(H200, free_bytes=1 << 20),)),
            "not enough for 3 batches of 1",
            "nvidia-smi --query-compute-apps",
        ),
        (
            "device memory",
            "warning",
            lambda f: with_driver(f, gpus=(replace(H200, free_bytes=None),)),
            "not known",
            "nvidia-smi",
        ),
        ("CuPy wheel", "fail", lambda f: replace(f, wheels={}), "none", f"pip install -e '{ROOT}[cuda13]'"),
        (
            "CuPy wheel",
            "fail",
            lambda f: replace(f, wheels={"cupy-cuda12x": "13.6", "cupy-cuda13x": "14.2"}),
            "overwrite each other: cupy-cuda12x 13.6, cupy-cuda13x 14.2",
            f"pip uninstall -y cupy-cuda12x cupy-cuda13x && python -m pip install -e '{ROOT}[cuda13]'",
        ),
        (
            "CuPy wheel",
            "fail",
            lambda f: with_driver(f, cuda=(12, 4)),
            "needs CUDA 13, the driver runs up to 12.4",
            f"pip uninstall -y cupy-cuda13x && python -m pip install -e '{ROOT}[cuda12]'",
        ),
        ("CuPy wheel", "fail", lambda f: replace(f, wheels={"cupy-cuda11x": "13"}), "is for CUDA 11", "[cuda13]"),
        ("CuPy wheel", "fail", lambda f: replace(f, wheels={"cupy-rocm-6-1": "13"}), "AMD", "[cuda13]"),
        (
            "CuPy",
            "fail",
            lambda f: replace(f, cupy=Library(error="ImportError: libcudart")),
            "cannot be imported: ImportError: libcudart",
            "--force-reinstall --no-cache-dir cupy-cuda13x",
        ),
        ("NVRTC", "fail", lambda f: replace(f, nvrtc=Library(error="is not")), "is not", "nvidia-cuda-nvrtc"),
        (
            "NVRTC",
            "fail",
            lambda f: with_driver(f, cuda=(12, 8)),
            "the driver runs CUDA up to 12.8",
            "pip install nvidia-cuda-nvrtc-cu12",
        ),
        (
            "kernel cache",
            "fail",
            lambda f: replace(f, cache_error="cache is not writable"),
            "cache is not writable",
            "export INT4CORE_CACHE_DIR=",
        ),
        (
            "locked memory",
            "warning",
            lambda f: replace(f, memlock_bytes=8 << 20),
            "8 MiB; registering 1,024 samples with CUDA takes 147 MiB",
            "ulimit -l unlimited",
        ),
        ("nsys", "warning", lambda f: replace(f, nsys=None), "Nsight Systems is not here", "nsight-systems-cli"),
        ("ncu", "warning", lambda f: replace(f, ncu=None), "Nsight Compute is not here", "cuda-nsight-compute"),
        (
            "LoadGen",
            "fail",
            lambda f: replace(f, loadgen=Library(error="cannot be imported")),
            "cannot be imported",
            "pip install mlcommons-loadgen",
        ),
        ("LoadGen", "fail", lambda f: replace(f, loadgen=Library("4.1")), "older than 5.0", "--upgrade"),
        (
            "shared memory",
            "fail",
            lambda f: replace(f, shm_free_bytes=64 << 20),
            "64 MiB to be had; 1,024 samples take 147 MiB, 50,000 7.0 GiB",
            "sudo mount -o remount,size=9G /dev/shm  # in a container: docker run --shm-size=9g",
        ),
        ("shared memory", "warning", lambda f: replace(f, shm_free_bytes=GIB), "1.0 GiB to be had", "--shm-size=9g"),
        (
            "shared memory",
            "warning",
            lambda f: replace(f, cgroup=Cgroup(memory_bytes=2 * GIB)),
            "2.0 GiB to be had; 1,024 samples take 147 MiB, 50,000 7.0 GiB; memory is what is short",
            "docker run --memory=17g",
        ),
        (
            "cores",
            "warning",
            lambda f: replace(f, cgroup=Cgroup(cores=1.5)),
            "1, of 16 under a quota of 1.5: loaders and LoadGen share it",
            "--cpus=4",
        ),
        ("cores", "warning", lambda f: replace(f, cores_visible=1), "LoadGen share it", "--cpus=4"),
    ],
)
def test_what_is_wrong_is_said_with_its_mend(
    healthy: Facts, check: str, status: str, change: Change, said: str, remedy: str
) -> None:
    finding = of(examine(change(healthy), "h200"), check)
    assert finding.status == status
    assert said in finding.said
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (None, "warning", "none for h200: kernels are chosen by rule"),
        ("# engine: int4core\n# gpu: h100\nlayer1_residual1_conv2=1\n", "fail", "was made for h100"),
        ("# engine: int4core\nlayer1_residual1_conv2=1\n", "warning", "does not say which GPU"),
        ("# engine: int4core\n# gpu: h200\nlayer1_residual1_conv2=999999\n", "fail", "h200:3"),
        ("layer1_residual1_conv2=13\n", "fail", "h200"),
        ("nonsense\n", "fail", "h200:1"),
    ],
)
def test_the_tuned_file_has_to_be_for_this_chip(healthy: Facts, text: str | None, status: str, said: str) -> None:
    file = healthy.autoconfig_folders[0] / "h200"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    finding = of(examine(healthy, "auto"), "tuned file")
    assert finding.status == status
    assert said in finding.said
    assert finding.remedy == "python -m int4core.tune --gpu h200"


def test_a_broken_file_for_another_batch_is_found(healthy: Facts) -> None:
    file = healthy.autoconfig_folders[0] / "h200.batch1"
    file.write_text("# engine: int4core\n# gpu: t4\nlayer1_residual1_conv2=1\n")
    finding = of(examine(healthy), "tuned file")
    assert finding.status == "fail"
    assert "h200.batch1: was made for t4" in finding.said


def test_without_a_gpu_a_run_that_may_take_the_cpu_is_no_failure(healthy: Facts) -> None:
    bare = replace(healthy, driver="no driver", wheels={}, cupy=Library(error="none"), nvrtc=Library(error="none"))
    findings = examine(bare, "auto")
    assert {f.status for f in findings} == {"ok", "warning"}
    assert of(findings, "CuPy").status == "warning"
    assert {f.check for f in examine(bare, "cpu")} == {
        "CPU backend",
        "LoadGen",
        "shared memory",
        "cores",
        "memory nodes",
    }
    failing = {f.check for f in examine(bare, "h200") if f.status == "fail"}
    assert failing == {"driver", "GPU", "CuPy wheel", "CuPy", "NVRTC"}


def test_the_backend_that_the_cpu_would_take(healthy: Facts) -> None:
    assert "CPU backend" not in {f.check for f in examine(healthy, "auto")}, "a GPU computes"
    bare = replace(healthy, driver="no driver")
    for gpu in ("auto", "cpu"):
        assert of(examine(bare, gpu), "CPU backend").said == "torch (torch 2.13.0, numba 0.68.1)"
    found = of(examine(replace(bare, cpu_libraries={"torch": "2.13.0", "numba": ""}), "cpu"), "CPU backend")
    assert (found.status, found.said.partition(";")[0]) == ("warning", "numpy: numba not installed")
    assert found.remedy == f"python -m pip install -e '{ROOT}[torch]'"
    assert tuple(probe.read_cpu_libraries()) == ("torch", "numba")


def test_another_chip_than_the_one_asked_for_is_a_failure(healthy: Facts) -> None:
    assert "not here (0: NVIDIA H200)" in of(examine(healthy, "t4"), "GPU").said


def test_a_chip_without_a_record_is_named(healthy: Facts) -> None:
    unknown = GpuFacts(0, "NVIDIA GeForce RTX 3060", None, 30 * GIB, 32 * GIB)
    facts = replace(with_driver(healthy, gpus=(unknown,)), plan_bytes=probe.plan_bytes)
    findings = examine(facts)
    assert of(findings, "GPU").status == "warning"
    assert of(findings, "kernels").status == "warning"
    assert "NVIDIA GeForce RTX 3060 has no record here" in of(findings, "kernels").said


def test_the_default_model_can_be_planned_for_a_chip() -> None:
    planned = probe.plan_bytes("h200")
    assert isinstance(planned, int)
    assert planned > 1024 * 3 * 224 * 224


def test_which_distributions_are_cupy() -> None:
    installed = ["CuPy_CUDA12x", "numpy", "cupy", "cupy-xarray", "cupy-rocm-6-1"]
    assert list(cupy_wheels((name, "13.6") for name in installed)) == ["cupy", "cupy-cuda12x", "cupy-rocm-6-1"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cgroup"),
    [
        ({}, Cgroup()),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, Cgroup()),
        ({"cpu.max": "250000 100000\n", "memory.max": "4294967296\n"}, Cgroup(2.5, 4 * GIB)),
        (
            {
                "cpu/cpu.cfs_quota_us": "400000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            Cgroup(4.0, None),
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, Cgroup()),
    ],
)
def test_cgroup_limits_of_both_versions(tmp_path: Path, files: dict[str, str], cgroup: Cgroup) -> None:
    assert read_cgroup(write(tmp_path, files)) == cgroup


def test_cores_under_a_quota(healthy: Facts) -> None:
    finding = of(examine(replace(healthy, cgroup=Cgroup(cores=2.5)), "h200"), "cores")
    assert (finding.status, finding.said) == ("ok", "2, of 16 under a quota of 2.5")


def on_nodes(facts: Facts, *gpus: int | None, arena: dict[int, float]) -> Facts:
    """A machine of two nodes, its GPUs near those."""
    here = tuple(replace(H200, index=index, node=node) for index, node in enumerate(gpus))
    nodes = (Node(0, frozenset(range(8)), 256 * GIB), Node(1, frozenset(range(8, 16))))
    return replace(with_driver(facts, gpus=here), nodes=nodes, arena=arena)


def test_what_is_on_which_node_of_memory(healthy: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "default_loaders", lambda: 10)
    one = replace(healthy, nodes=(Node(0, frozenset({0})),))
    assert of(examine(one), "memory nodes").said == "1: nothing is far"
    spread = of(examine(on_nodes(healthy, 0, 0, 1, arena={0: 0.5, 1: 0.5})), "memory nodes")
    assert spread.status == "ok"
    assert spread.said == (
        "2: node 0: 8 cores, 256.0 GiB, GPU processes 0, 1, 7 loaders, 50 % of an arena; "
        "node 1: 8 cores, GPU processes 2, 3 loaders, 50 % of an arena"
    )
    apart = of(examine(on_nodes(healthy, 0, 1, arena={1: 1.0})), "memory nodes")
    assert apart.status == "warning"
    assert "read an arena on node 1 from afar" in apart.said
    assert "numactl --interleave=all" in apart.remedy
    near = of(examine(on_nodes(healthy, 1, 1, arena={1: 1.0})), "memory nodes")
    assert near.status == "ok"
    lost = of(examine(on_nodes(healthy, 0, None, arena={})), "memory nodes")
    assert lost.status == "warning"
    assert lost.said.endswith("GPU 1 does not report its node: no process is placed")
    assert "loaders" not in lost.said
    assert "no process is placed" in of(examine(on_nodes(healthy, 0, 1, arena={0: 1.0}), "cpu"), "memory nodes").said


def test_where_an_arena_lies_is_seen_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def shares_of(path: str) -> dict[int, float]:
        assert Path(path).exists()
        seen.append(path)
        return {1: 1.0}

    monkeypatch.setattr(probe, "shares_of", shares_of)
    assert probe.arena_shares() == {1: 1.0}
    assert not Path(seen[0]).exists()


def test_a_cache_that_others_can_write_is_noticed(tmp_path: Path) -> None:
    assert probe.why_no_cache(tmp_path / "not" / "yet") == ""
    (tmp_path / "cache").mkdir(mode=0o700)
    assert probe.why_no_cache(tmp_path / "cache") == ""
    (tmp_path / "cache").chmod(0o777)
    assert "can be written by other users (mode 777)" in probe.why_no_cache(tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_noticed(tmp_path: Path) -> None:
    assert probe.why_not_writable(tmp_path / "not" / "yet") == ""
    (tmp_path / "file").write_text("")
    assert probe.why_not_writable(tmp_path / "file" / "cache").endswith("file is a file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_noticed(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "not writable" in probe.why_not_writable(tmp_path / "cache")


def test_the_newest_profiler_off_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_profiler(NSYS, tmp_path) is None
    for version in ("2025.9.1", "2025.10.1"):
        binary = write(tmp_path, {f"opt/nvidia/nsight-systems/{version}/bin/nsys": ""})
        (binary / f"opt/nvidia/nsight-systems/{version}/bin/nsys").chmod(0o755)
    found = find_profiler(NSYS, tmp_path)
    assert found == tmp_path / "opt/nvidia/nsight-systems/2025.10.1/bin/nsys"
    monkeypatch.setenv("PATH", str(tmp_path / "opt/nvidia/nsight-systems/2025.9.1/bin"))
    found = find_profiler(NSYS, tmp_path)
    assert found is not None
    assert "2025.9.1" in str(found)


def test_a_profiler_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.machine.profilers.find_profiler", lambda profiler: None)
    with pytest.raises(PipelineError, match=r"Nsight Compute \(ncu\) is not on PATH.*To get it: sudo apt-get"):
        require_profiler(NCU)


def test_the_command_prints_a_line_a_check(
    healthy: Facts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda _loadgen: healthy)
    assert doctor.main(["--gpu", "h200"]) == 0
    assert capsys.readouterr().out.endswith("16 ok, 0 with a drawback, 0 failing\n")
    monkeypatch.setattr(doctor, "gather", lambda _loadgen: replace(healthy, shm_free_bytes=0, nsys=None))
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("fail")]
    assert lines[at].split()[1:3] == ["shared", "memory"]
    assert lines[at + 1].strip().startswith("fix: sudo mount")
    assert lines[-1] == "14 ok, 1 with a drawback, 1 failing"
    assert doctor.main(["--json"]) == 1
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert {"check": "cores", "status": "ok", "said": "16", "remedy": ""} in said["findings"]


def test_a_folder_for_shared_memory_that_is_none_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INT4CORE_SHM_DIR", str(tmp_path / "none"))
    assert doctor.main(["--gpu", "cpu"]) == 1
    said = f"error: INT4CORE_SHM_DIR: {tmp_path}/none is no folder; it takes one in memory, a tmpfs\n"
    assert capsys.readouterr() == ("", said)


def test_it_runs_on_the_machine_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main(["--gpu", "cpu", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert status == (0 if said["ok"] else 1)
    assert [f["check"] for f in said["findings"]] == [
        "CPU backend",
        "LoadGen",
        "shared memory",
        "cores",
        "memory nodes",
    ]
    assert probe.gather(find_loadgen()).cores_visible >= 1
