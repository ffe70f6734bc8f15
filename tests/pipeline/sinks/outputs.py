"""Outputs of every kind in the folder of the test: opened, refused, left by the dead, read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.sinks.base import Sink
from pipeline.sinks.opening import open_sink
from pipeline.sinks.parts import PartsSink
from tests.pipeline.sinks.made import CLASSES, IDENTITY, as_tuples

OUTS = ("a.parquet", "a.csv", "a.jsonl", "parts/")
KEYS = [f"d/{n}.jpg" for n in range(100)]


def opened(out: str, **options: Any) -> PartsSink:
    sink = open_sink(out, **{"identity": IDENTITY, "class_names": CLASSES, **options})
    assert isinstance(sink, PartsSink)
    return sink


def refused(out: str, **options: Any) -> str:
    before = [name for name in names() if not name.endswith("lock")]
    with pytest.raises(PipelineError) as caught:
        open_sink(out, **{"identity": IDENTITY, "class_names": CLASSES, **options})
    assert [name for name in names() if not name.endswith("lock")] == before
    return str(caught.value)


def abandon(sink: PartsSink) -> None:
    """What a kill does to a sink: nothing is written any more, and the lock is free."""
    os.close(sink._lock._descriptor)
    sink._lock._descriptor = -1


def rows_of(sink: Sink) -> list[tuple[object, ...]]:
    return [row for rows in sink.earlier() for row in as_tuples(rows)]


def names() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))
