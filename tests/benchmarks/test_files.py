"""Files to a table: every row of every run is compared with that of its image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.files import Rows, listed, main
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
    assert main([*map(str, given), "--sources", "tar", "--files", "7", "--members", "5"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [["tar", "2", "2", "10"]]
    assert all(re.fullmatch(r"[0-9,]+", row[4]) and row[8] == "0" for row in rows)


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
