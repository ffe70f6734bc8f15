"""A small model in a folder, with names of its classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from int4core.random_model import random_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    random_model(blocks=(2, 1, 1, 1), width=4, classes=3, pool=2).save(folder)
    (folder / "classes.txt").write_text("tench\nSäge\nshark, white\n", encoding="utf-8")
    return folder
