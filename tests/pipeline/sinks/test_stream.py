"""Lines to standard output, and rows that are thrown away."""

from __future__ import annotations

import io
import json
import os

import pytest

from pipeline.errors import PipelineError
from pipeline.sinks.opening import open_sink
from tests.pipeline.sinks.made import IDENTITY, made


def test_lines_come_at_once() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as stream:
        with open_sink("-", identity=IDENTITY, stdout=stream) as sink:
            sink.write(made(["a.jpg", "b\n.jpg"]))
            assert json.loads(reader.readline())["key"] == "a.jpg"
            assert json.loads(reader.readline())["key"] == "b\n.jpg"
            sink.tick()
        assert not stream.closed
        assert (sink.rows, sink.complete, len(sink.done), list(sink.earlier())) == (2, False, 0, [])


def test_a_reader_that_goes_away() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = io.FileIO(write, "wb")
    sink = open_sink("-", identity=IDENTITY, stdout=stream)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="standard output: its reader has closed it"):
        sink.write(made(["a.jpg"]))
    assert sink.rows == 0
    stream.close()


def test_none_counts() -> None:
    rows = made([str(n) for n in range(50)])
    with open_sink("none", identity=IDENTITY) as sink:
        sink.write(rows)
        sink.write(rows)
    assert (sink.rows, sink.errors, sink.complete) == (100, 2 * len(rows.errors), False)
