"""Folders of the small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.int4core.model_folders import small


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for many tests, each of which leaves it as it was."""
    path = tmp_path_factory.mktemp("whole") / "model"
    small().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save(tmp_path / "model")
    return tmp_path / "model"
