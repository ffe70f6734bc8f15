from __future__ import annotations

import importlib.util

import pytest

from int4core.backends.cuda.chips import name_of
from pipeline.errors import PipelineError
from pipeline.machine.gpus import Gpu, choose_target


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA TITAN RTX", "titan_rtx"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_the_drivers_names(name: str, key: str | None) -> None:
    assert name_of(name) == key


def test_auto_without_a_gpu_is_the_cpu_and_says_so() -> None:
    target = choose_target("auto", (), cpu_backend="numpy")
    assert (target.backend, target.notice) == ("numpy", "CPU by NumPy: no NVIDIA GPU was found")


def test_cpu_is_the_cpu_whatever_is_there() -> None:
    target = choose_target("cpu", (Gpu(0, "NVIDIA H200", "h200"),), cpu_backend="numpy")
    assert (target.backend, target.notice) == ("numpy", "CPU by NumPy: as asked")


def test_a_gpu_that_is_not_there_is_an_error_that_names_what_is() -> None:
    with pytest.raises(PipelineError, match=r"--gpu t4: not here \(0: NVIDIA H200\)"):
        choose_target("t4", (Gpu(0, "NVIDIA H200", "h200"),))
    with pytest.raises(PipelineError, match="no NVIDIA GPU"):
        choose_target("t4", ())


def test_a_gpu_without_cupy_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PipelineError, match=r"-m pip install -e .*\[cuda13\]. \(cuda12 with"):
        choose_target("auto", (Gpu(0, "NVIDIA H200", "h200"),))


def test_the_chip_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    gpus = (Gpu(0, "Tesla T4", "t4"), Gpu(1, "NVIDIA H200", "h200"))
    assert choose_target("h200", gpus).gpu == gpus[1]
    assert choose_target("auto", gpus).gpu == gpus[0]


def test_gpus_by_number_one_engine_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    gpus = (Gpu(0, "NVIDIA H200", "h200", "A"), Gpu(1, "NVIDIA H200", "h200", "B"), Gpu(2, "Tesla T4", "t4", "C"))
    both = choose_target("auto", gpus, (1, 0))
    assert (both.gpus, both.key, both.bus_ids) == ((gpus[1], gpus[0]), "h200", ("B", "A"))
    assert "GPU 1: NVIDIA H200, GPU 0" in both.notice
    assert choose_target("auto", gpus, (1, 1)).gpus == (gpus[1], gpus[1]), "two engines may share a GPU"
    mixed = choose_target("auto", gpus, (0, 2))
    assert (mixed.key, mixed.bus_ids) == (None, ("A", "C"))
    with pytest.raises(PipelineError, match="3 is not here"):
        choose_target("auto", gpus, (0, 3))
    with pytest.raises(PipelineError, match="GPU 2 is a Tesla T4, not a h200"):
        choose_target("h200", gpus, (0, 2))


def test_a_gpu_that_cannot_be_told_from_the_others_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    gpus = (Gpu(0, "NVIDIA H200", "h200", "A"), Gpu(1, "NVIDIA H200", "h200", ""))
    for numbers in ((0, 1), (1, 0), (1,), (1, 1)):
        with pytest.raises(PipelineError, match=r"PCI address of GPU 1: .* CUDA_VISIBLE_DEVICES"):
            choose_target("auto", gpus, numbers)
    assert choose_target("auto", gpus, (0,)).bus_ids == ("A",)
    only = (Gpu(0, "NVIDIA H200", "h200", ""),)
    assert choose_target("auto", only, (0, 0)).gpus == only * 2, "there is no other"
