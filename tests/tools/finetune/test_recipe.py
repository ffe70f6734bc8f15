"""The whole recipe, in miniature."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from int4core.model import Model  # noqa: E402
from pipeline.samples.classes import read_classes  # noqa: E402
from tests.tools.finetune.tiny import CPU, SIZE, TINY  # noqa: E402
from tools.finetune import recipe, train  # noqa: E402
from tools.shapes import class_name  # noqa: E402


class Steps:
    """A clock by which whatever is timed takes as long, whatever the machine: it moves on where it is looked at."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 0.1
        return self.now_s


def test_recipe_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Steps()
    monkeypatch.setattr(recipe, "time", clock)
    monkeypatch.setattr(train, "time", clock)
    plan = recipe.Recipe(
        TINY, minutes=0.06, sizes=((0.0, 48), (0.5, SIZE)), final_size=SIZE, parent_batch=16,
        quantised_batch=8, parent_lr=0.05, calibration_batches=2, reserve_seconds=1.0, test_images=40,
        exact_images=20, jpegs=16, engine_images=8, compile_quantised=False,
    )  # fmt: skip
    results = recipe.run(plan, tmp_path / "out", tmp_path / "work", CPU)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["engine_agreement"] == results["engine_agreement"] == 1.0
    assert kept["engine_largest_difference"] == 0
    assert min(kept["parent_steps"], kept["quantised_steps"]) > 2
    for name in ("fp32_top1", "int4_calibrated_top1", "int4_top1", "int4_exact_top1", "int4_jpeg_top1"):
        assert 0 <= kept[name] <= 1
    with tarfile.open(tmp_path / "out" / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "there")
    assert Model.load(tmp_path / "there" / "model").network.classes == 16
    assert read_classes(None, tmp_path / "there" / "model", 16) == tuple(class_name(n) for n in range(16))
