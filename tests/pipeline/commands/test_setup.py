"""What the options for the engines come to, for every command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands import setup as under_test
from pipeline.commands.options import EngineOptions
from pipeline.commands.setup import set_up
from pipeline.loadgen.options import parse
from pipeline.machine.gpus import Gpu, Target


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
    made = set_up(replace(options, gpu="cpu"), said.append)
    assert said == [f"running on {made.target.notice}"]
    assert (made.side, made.short_side(resize=True), made.short_side(resize=False)) == (64, 73, None)
