"""Files decoded on the GPU, through the whole of classify: the rows are those of loaders, score by score."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pipeline.classify.__main__ import main
from tests.paths import SHARED
from tests.pipeline.conftest import IMAGES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cupy", "clean")]


def rows(model: Path, folder: Path, out: Path, decode: str, batch: int) -> list[dict]:
    given = ["--model", model, "--out", out, "--decode", decode, "--loaders", 2, "-b", batch, "--no-dashboard"]
    given += ["--trace", out.with_suffix(".trace")]
    assert main([str(folder), *map(str, given)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("batch", [5, 64])
def test_rows_are_those_of_loaders(model_dir: Path, images: Path, tmp_path: Path, batch: int) -> None:
    folder, rng = tmp_path / "images", random.Random(7)
    folder.mkdir()
    for number in range(IMAGES):
        data = bytearray((images / f"{number}.jpg").read_bytes())
        (folder / f"{number}.jpg").write_bytes(data)
        for _ in range(3):  # damage in the scan, of which Pillow has the last word
            data[rng.randrange(len(data) // 2, len(data) - 2)] = rng.randrange(256)
        (folder / f"{number}-damaged.jpg").write_bytes(data)
    by_gpu = rows(model_dir, folder, tmp_path / "gpu.jsonl", "gpu", batch)
    assert by_gpu == rows(model_dir, folder, tmp_path / "cpu.jsonl", "cpu", batch)
    decoded = json.loads((tmp_path / "gpu.jsonl.summary.json").read_text())["decoded"]
    assert decoded["gpu"] >= IMAGES
    assert decoded["gpu"] + sum(decoded["loaders"].values()) == 2 * IMAGES
    assert decoded["loaders"], "none of the damaged files has been noticed"
    events = json.loads((tmp_path / "gpu.trace").read_text())["traceEvents"]
    assert {"files", "jpeg_unstuff", "jpeg_entropy", "jpeg_idct", "upload", "network"} <= {e["name"] for e in events}


def test_real_images(tmp_path: Path) -> None:
    folder, model = SHARED / "imagenet" / "sample200", SHARED / "model-v0.5" / "model"
    if not folder.is_dir():
        pytest.skip("needs ../shared beside the checkout: real images and the published model")
    by_gpu = rows(model, folder, tmp_path / "gpu.jsonl", "gpu", 128)
    assert by_gpu == rows(model, folder, tmp_path / "cpu.jsonl", "cpu", 128)
    assert len(by_gpu) == 200
