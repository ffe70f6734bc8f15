"""Fixtures of the tests of outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.sinks.outputs import OUTS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=OUTS)
def out(request: pytest.FixtureRequest) -> str:
    if not request.param.endswith((".csv", ".jsonl")):
        pytest.importorskip("pyarrow")
    return str(request.param)
