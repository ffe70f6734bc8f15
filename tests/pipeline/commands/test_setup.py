"""What the options for the engines come to, for every command."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from int4core.model import Model
from int4core.options import NumpyOptions, TorchOptions
from int4core.random_model import random_model
from pipeline.commands import setup as under_test
from pipeline.commands.options import EngineOptions
from pipeline.commands.setup import set_up
from pipeline.errors import PipelineError
from pipeline.loadgen.options import parse
from pipeline.machine.gpus import Gpu, Target
from pipeline.samples.images import ImageRules


@pytest.fixture
def options(model_dir: Path) -> EngineOptions:
    return parse(["--model", str(model_dir)]).engine


@pytest.mark.parametrize("strict", [True, False])
def test_strict_reaches_the_engines_that_have_kernels_to_choose(
    strict: bool, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Target("cuda", (Gpu(0, "NVIDIA H200", "h200", "A"),), "a GPU")
    for target, expected in ((gpu, strict), (Target("numpy", (), "CPU"), False)):
        monkeypatch.setattr(under_test, "choose_target", lambda *_, target=target, **__: target)
        made = set_up(replace(options, strict=strict), lambda line: None)
        assert getattr(made.backend_options, "strict", False) is expected


def test_what_is_computed_on_is_said_and_inputs_are_as_the_model_takes_them(options: EngineOptions) -> None:
    said: list[str] = []
    made = set_up(replace(options, gpu="cpu", cpu_backend="numpy"), said.append)
    assert said == [f"running on {made.target.notice}"]
    assert (made.side, made.short_side(resize=True), made.short_side(resize=False)) == (64, 73, None)


@pytest.mark.parametrize(
    ("there", "machine", "backend", "said"),
    [
        (("torch", "numba"), "x86_64", "torch", "PyTorch"),
        (("torch",), "x86_64", "numpy", "NumPy"),
        (("numba",), "x86_64", "numpy", "NumPy"),
        (("torch", "numba"), "aarch64", "numpy", "NumPy"),
    ],
)
def test_the_cpu_takes_torch_where_all_of_it_is_there(
    there: tuple[str, ...], machine: str, backend: str, said: str,
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in there else None)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    lines: list[str] = []
    made = set_up(replace(options, gpu="cpu"), lines.append)
    assert (made.target.backend, lines) == (backend, [f"running on CPU by {said}: as asked"])
    assert type(made.backend_options) is {"torch": TorchOptions, "numpy": NumpyOptions}[backend]


def test_a_backend_of_the_cpu_that_is_asked_for_is_taken_or_an_error(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else object())
    remedy = r"--cpu-backend torch: numba not installed: .* -m pip install .*\[torch\]"
    with pytest.raises(PipelineError, match=remedy):
        set_up(replace(options, gpu="cpu", cpu_backend="torch"), lambda line: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for backend in ("torch", "numpy"):
        assert set_up(replace(options, gpu="cpu", cpu_backend=backend), lambda line: None).target.backend == backend


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("backend", ["cuda", "torch", "numpy"])
def test_numba_resizes_where_loaders_are_a_part_of_the_cost(
    numba: bool, backend: str, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = (Gpu(0, "NVIDIA H200", "h200", "A"),) if backend == "cuda" else ()
    monkeypatch.setattr(under_test, "choose_target", lambda *_, **__: Target(backend, gpus, "it"))
    monkeypatch.setattr(under_test, "is_installed", lambda module: module == "numba" and numba)
    made = set_up(options, lambda line: None)
    assert made.preparation("images", True, ImageRules()).compiled is (numba and backend != "numpy")
    assert not made.preparation("tensors", True, ImageRules()).compiled


def test_another_model_than_the_one_that_a_run_began_with_is_refused(options: EngineOptions, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    random_model(width=2, classes=3, pool=1, seed=1).save(folder)
    options = replace(options, model=folder, gpu="cpu", cpu_backend="numpy")
    began = set_up(options, lambda line: None).digest
    assert began == Model.load(folder).digest
    assert set_up(replace(options, digest=began), lambda line: None).digest == began
    random_model(width=2, classes=3, pool=1, seed=2).save(folder)
    with pytest.raises(PipelineError, match="is not the model that this run began with"):
        set_up(replace(options, digest=began), lambda line: None)
