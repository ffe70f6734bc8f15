"""The command on a small model, and its rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq
import pytest

from pipeline.classify.__main__ import main
from tests.pipeline.application import CPU


class Classify(Protocol):
    def __call__(self, *arguments: object) -> int: ...


@pytest.fixture
def classify(model_dir: Path) -> Classify:
    """Runs the command in this process, on the CPU, with a loader; its exit status."""

    def run(*arguments: object) -> int:
        return main([*map(str, arguments), "--model", str(model_dir), *CPU, "--loaders", "1", "-b", "4"])

    return run


def rows_in(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="")))
    return list(pq.read_table(path).to_pylist())
