"""What the command makes of its options for the engines, and what the console says of stages that are up."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import mlperf_loadgen as lg
import pytest
from rich.console import Console

from pipeline.loadgen import command as command_module
from pipeline.loadgen.command import OfflineCommand, _introduction
from pipeline.loadgen.options import parse
from pipeline.machine.gpus import Gpu, Target
from pipeline.session.supervisor import Supervisor


def test_a_stage_is_introduced_with_its_notices() -> None:
    stage = SimpleNamespace(name="infer", notes=("one", "two"), pids=(7, 8), notices=("mine:5: kernel 100 ...",))
    assert list(_introduction(stage, alike=False)) == [
        "stage infer is up: one | two, pids 7, 8",
        "stage infer: mine:5: kernel 100 ...",
    ]
    assert next(_introduction(stage, alike=True)) == "stage infer is up: one, pids 7, 8"


@pytest.mark.parametrize("strict", [True, False])
def test_strict_reaches_the_engines_that_have_kernels_to_choose(
    strict: bool, model_dir: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--model", str(model_dir), "--images", str(images), *(["--strict"] if strict else [])]
    gpu = Target("cuda", (Gpu(0, "NVIDIA H200", "h200", "A"),), "a GPU")
    for target, expected in ((gpu, strict), (Target("numpy", (), "CPU"), False)):
        monkeypatch.setattr(command_module, "choose", lambda *_, target=target, **__: target)
        run = OfflineCommand(parse(given), Supervisor(), Console(file=io.StringIO()))
        run._test_settings = lg.TestSettings()
        assert getattr(run._prepare().spec.backend_options, "strict", False) is expected
