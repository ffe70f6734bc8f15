"""Files to a table: every row of every run is compared with that of its image."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.files import SMALL_BYTES, Rows, decoders, listed, main, smaller
from int4core.random_model import random_model
from pipeline.errors import PipelineError
from tests.pipeline.application import CPU


@pytest.fixture(autouse=True)
def _pyarrow() -> None:
    pytest.importorskip("pyarrow")


def test_every_image_of_a_run_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = tmp_path / "model", tmp_path / "images"
    random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3).save(model)
    images.mkdir()
    rng = np.random.default_rng(3)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(images / f"{number}.jpg")
    given = ["--images", images, "--model", model, *CPU, "--loaders", 1, "--batches", "2x2"]
    assert main([*map(str, given), "--sources", "tar,small", "--files", "7", "--members", "5"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:5] for row in rows] == [["tar", "auto", "2", "2", "10"], ["small", "auto", "2", "2", "7"]]
    assert all(re.fullmatch(r"[0-9,]+", row[5]) and row[9] == "0" for row in rows)


def test_images_are_scaled_down_to_a_size_and_none_of_them_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, side in {"large.png": 400, "little.jpg": 40}.items():
        Image.fromarray(rng.integers(0, 256, (side, side + 10, 3), dtype=np.uint8)).save(tmp_path / name)
    large, little = smaller(tmp_path / "made", [tmp_path / "large.png", tmp_path / "little.jpg"])
    assert large.stat().st_size == pytest.approx(SMALL_BYTES, rel=0.1)
    with Image.open(large) as image:
        assert 100 < image.height < 400
        assert image.width / image.height == pytest.approx(410 / 400, abs=0.02)
    with Image.open(little) as image:
        assert image.size == (50, 40)


@pytest.mark.parametrize(("text", "found"), [("auto", ["auto"]), ("gpu,cpu", ["gpu", "cpu"])])
def test_decoders_that_are_compared(text: str, found: list[str]) -> None:
    assert decoders(text) == found
    with pytest.raises(argparse.ArgumentTypeError, match="it takes some of auto, gpu, cpu"):
        decoders(f"{text},disk")


def test_a_list_has_as_many_names_as_are_asked_for(tmp_path: Path) -> None:
    images = [tmp_path / name for name in "abc"]
    for image in images:
        image.write_text(image.name)
    folder = tmp_path / "names"
    folder.mkdir()
    names = listed(folder, images, 7).read_text().splitlines()
    assert len(set(names)) == 7
    assert [Path(name).read_text() for name in names] == list("abcabca")


def table(path: Path, keys: list[str], classes: list[int], error: str | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(keys)
    answers = {
        "key": keys,
        "class_id": pa.array(classes, pa.int32()),
        "score": pa.array([0.5] * n, pa.float32()),
        "top_ids": [[c, 9] for c in classes],
        "top_scores": [[0.5, 0.25]] * n,
        "error": pa.array([error] * n, pa.string()),
    }
    pq.write_table(pa.table(answers), path)
    return path


def test_rows_that_are_not_those_of_the_images(tmp_path: Path) -> None:
    expected = Rows(table(tmp_path / "expected", ["d/a.jpg", "d/b.jpg"], [1, 2]))
    found = table(tmp_path / "found", ["x/b.jpg", "x/a.jpg", "s.tar/00000001-a.jpg"], [2, 2, 1])
    assert expected.wrong(found) == (3, 1)
    with pytest.raises(PipelineError, match="no such file"):
        expected.wrong(table(tmp_path / "bad", ["x/b.jpg"], [2], "there is no such file"))
