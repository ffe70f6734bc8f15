"""Runs that compute by PyTorch: the answers of runs that compute by NumPy, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.pipeline.application import offline, predictions

pytest.importorskip("torch", reason="needs PyTorch: make test WITH_TORCH=1, or pip install '.[torch]'")
pytest.importorskip("numba", reason="needs Numba: make test WITH_TORCH=1, or pip install '.[torch]'")

CLASSIFY = """
import sys
from pipeline.classify.__main__ import main
status = main(sys.argv[1:])
assert not {"torch", "numba"} & set(sys.modules), "only the engine's process takes the time and the memory"
sys.exit(status)
"""


def classified(model: Path, images: Path, out: Path, *options: object) -> tuple[list[str], str]:
    """The rows, and what the run said."""
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFY, images, "--out", out, "--model", model, "--gpu", "cpu", "--loaders", "1",
         "-b", "4", "--no-dashboard", *map(str, options)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(out.read_text().splitlines()), done.stdout + done.stderr


def test_rows_are_equal(model_dir: Path, images: Path, tmp_path: Path) -> None:
    expected, by_numpy = classified(model_dir, images, tmp_path / "numpy.jsonl", "--cpu-backend", "numpy")
    found, by_torch = classified(model_dir, images, tmp_path / "torch.jsonl")
    assert len(found) > 4
    assert found == expected
    assert "running on CPU by NumPy: as asked" in by_numpy
    assert "running on CPU by PyTorch: as asked" in by_torch
    assert "torch, batch 4" in by_torch


def test_loadgen_gets_the_same_predictions(model_dir: Path, images: Path, tmp_path: Path) -> None:
    runs = {}
    for backend, title in (("numpy", "NumPy"), ("torch", "PyTorch")):
        out = tmp_path / backend
        # `offline` asks for NumPy; of an option that is given twice, the last counts.
        done = offline(
            "--model", model_dir, "--images", images, "--output-dir", out, "--test-mode", "AccuracyOnly",
            "--no-dashboard", "--cpu-backend", backend,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        summary = json.loads((out / "summary.json").read_text())
        assert summary["settings"]["target"] == f"CPU by {title}: as asked"
        assert summary["settings"]["options"]["cpu_backend"] == backend
        assert summary["engines"][0]["note"].startswith(f"{backend}, batch")
        runs[backend] = predictions(out)
    assert len(runs["torch"]) > 4
    assert runs["torch"] == runs["numpy"]
