"""Outputs in parts: what is written, when, and by whom."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.sinks.base import SinkError
from pipeline.sinks.durable import temporary_of
from pipeline.sinks.parts import PartsSink
from pipeline.sinks.rows import Rows
from tests.pipeline.sinks.made import IDENTITY, as_tuples, made
from tests.pipeline.sinks.outputs import KEYS, abandon, names, opened, rows_of

pytestmark = pytest.mark.usefixtures("here")


class Clock:
    """Seconds that pass when they are made to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_run_from_end_to_end(out: str) -> None:
    with opened(out) as sink:
        assert not sink.complete
        assert len(sink.done) == 0
        for start in range(0, 100, 8):
            sink.write(made(KEYS[start : start + 8]))
        sink.note({"gpu": "none"})
    expected = made(KEYS)
    assert (sink.rows, sink.errors) == (100, len(expected.errors))
    left = {
        "a.parquet": ["a.parquet"],
        "a.csv": ["a.csv", "a.csv.about.json"],
        "a.jsonl": ["a.jsonl", "a.jsonl.about.json"],
        "parts/": ["parts", "parts/_SUCCESS", "parts/_about.json", "parts/part-000000.parquet"],
    }[out]
    assert names() == left
    before = {name: os.stat(name).st_mtime_ns for name in names()[-3:] if os.path.isfile(name)}
    with opened(out) as again:
        assert again.complete
        assert (again.rows, again.errors) == (sink.rows, sink.errors)
        assert rows_of(again) == as_tuples(expected)
    assert names() == left
    assert before == {name: os.stat(name).st_mtime_ns for name in before}


def test_nothing_to_write_is_an_output(out: str) -> None:
    with opened(out):
        pass
    with opened(out) as again:
        assert again.complete
        assert again.rows == 0
        assert rows_of(again) == []


def test_parts_by_rows_and_by_time(out: str) -> None:
    clock = Clock()
    sink = opened(out, rows_per_part=30, seconds_per_part=30.0, clock=clock)
    count = lambda: len(sink._parts())  # noqa: E731
    sink.write(made(KEYS[:29]))
    assert count() == 0
    sink.write(made(KEYS[29:32]))
    assert count() == 1
    sink.write(made(KEYS[32:33]))
    clock.now += 29
    sink.write(made(KEYS[33:34]))
    assert count() == 1
    clock.now += 1
    sink.tick()
    assert count() == 2
    clock.now += 1000
    sink.tick()
    assert count() == 2
    sink.write(made(KEYS[34:35]))
    clock.now += 30
    sink.write(made(KEYS[35:36]))
    assert count() == 3
    sink.write(made(KEYS[36:40]))
    abandon(sink)

    with opened(out) as again:
        assert rows_of(again) == as_tuples(made(KEYS[:36]))
        assert [key in again.done for key in KEYS] == [True] * 36 + [False] * 64
        again.write(made(KEYS[36:]))
    with opened(out) as finished:
        assert rows_of(finished) == as_tuples(made(KEYS))


def test_about_is_readable(out: str) -> None:
    with opened(out, notes={"version": "1"}) as sink:
        sink.write(made(KEYS))
        sink.note({"gpu": "H100"})
    notes = {"version": "1", "gpu": "H100", "rows": "100", "errors": str(sink.errors)}
    if out == "a.parquet":
        from pipeline.sinks.parquet import ParquetFormat

        about = ParquetFormat(None).about(Path(out))
        assert about is not None
        assert (about.identity, about.notes) == (IDENTITY, notes)
        return
    about_path = Path("parts/_about.json") if out == "parts/" else Path(f"{out}.about.json")
    found = json.loads(about_path.read_text())
    assert (found["identity"], found["notes"]) == (IDENTITY, notes)


def test_a_folder_is_a_dataset(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    with opened("parts/", rows_per_part=10) as sink:
        for key in KEYS:
            sink.write(made([key]))
        assert dataset.dataset("parts").count_rows() == 100
    assert dataset.dataset("parts").to_table(["key"]).column("key").to_pylist() == KEYS


def test_parts_that_other_processes_write_are_the_outputs(out: str) -> None:
    """In the order of their numbers, whoever comes first; a task that is tried again writes the same part."""
    with opened(out, read_keys=False) as sink:
        writer = pickle.loads(pickle.dumps(sink.writer()))
        for number in (7, 0, 7):
            writer.write(number, made(KEYS[number : number + 5]))
        sink.leave()
    with opened(out) as sink:
        assert (len(sink.done), sink.rows) == (10, 10)
        sink.write(made(KEYS[50:51]))  # a run of this process alone goes on after them
        sink.leave()
    with opened(out, read_keys=False) as sink:
        assert (len(sink.earlier_parts), len(sink.done), sink.rows) == (3, 0, 0)
        part = sink.writer().write(0, made(KEYS[60:62]))  # and one of other processes after that
        assert len(list(sink.writer().folder.glob("part-*"))) == 4
        wanted = made([*KEYS[:5], *KEYS[7:12], KEYS[50], *KEYS[60:62]])
        sink.count(len(wanted), len(wanted.errors), [part])
    with opened(out) as sink:
        assert (sink.complete, sink.rows, sink.errors) == (True, len(wanted), len(wanted.errors))
        assert as_tuples(Rows.concatenate(list(sink.earlier()))) == as_tuples(wanted)


@pytest.mark.parametrize("read_keys", [True, False])
def test_tasks_that_outlive_their_run_write_no_more(out: str, read_keys: bool) -> None:
    """Not once another run goes on, whose rows theirs are too; and what slips in between is not kept."""
    with opened(out, read_keys=False) as first:
        late = first.writer()
        late.write(0, made(KEYS[:5]))
        first.leave()
    with opened(out, read_keys=read_keys) as second:
        with pytest.raises(SinkError, match="another run goes on with this output"):
            late.write(1, made(KEYS[5:10]))
        # As if it had been at its renaming.
        part = second._parts()[0]
        part.with_stem(f"part-{late.first + 1}").write_bytes(part.read_bytes())
        if read_keys:
            second.write(made(KEYS[5:10]))
        else:
            files = [second.writer().write(0, made(KEYS[5:10]))]
            second.count(5, 0)
            second.count(5, 0, files)
    with pytest.raises(SinkError):
        late.write(1, made(KEYS[5:10]))
    with opened(out) as sink:
        assert sink.complete
        assert as_tuples(Rows.concatenate(list(sink.earlier()))) == as_tuples(made(KEYS[:10]))


def test_a_part_that_comes_while_those_before_it_are_read_is_of_no_run(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier run's task, which was at its renaming when this run began."""
    with opened(out, read_keys=False) as first:
        late = first.writer()
        part = late.write(0, made(KEYS[:5]))
        first.leave()
    keys = PartsSink._keys

    def renamed_meanwhile(sink: PartsSink, path: Path) -> Iterator[Any]:
        part.with_stem(f"part-{late.first + 5}").write_bytes(part.read_bytes())
        return keys(sink, path)

    with monkeypatch.context() as patched:
        patched.setattr(PartsSink, "_keys", renamed_meanwhile)
        second = opened(out)
    with second:
        assert second.rows == 5
        second.write(made(KEYS[5:10]))
    with opened(out) as sink:
        assert as_tuples(Rows.concatenate(list(sink.earlier()))) == as_tuples(made(KEYS[:10]))


@pytest.mark.parametrize("out", ["a.csv", "a.jsonl"])
def test_a_part_that_comes_when_all_are_joined_is_of_no_run(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(out, read_keys=False) as first:
        late = first.writer()
        part = late.write(0, made(KEYS[:5]))
        first.leave()
    remove = PartsSink._remove_what_came_too_late

    def renamed_afterwards(sink: PartsSink) -> None:
        remove(sink)
        part.with_stem(f"part-{late.first + 5}").write_bytes(part.read_bytes())

    with opened(out) as second:
        second.write(made(KEYS[5:10]))
        monkeypatch.setattr(PartsSink, "_remove_what_came_too_late", renamed_afterwards)
    with opened(out) as sink:
        assert as_tuples(Rows.concatenate(list(sink.earlier()))) == as_tuples(made(KEYS[:10]))
    assert not [name for name in names() if "part-" in name]


def test_a_part_that_is_renamed_while_leftovers_are_removed_is_no_error(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(out, read_keys=False) as first:
        part = first.writer().write(0, made(KEYS[:5]))
        first.leave()
    leftovers = PartsSink._leftovers

    def renamed_meanwhile(sink: PartsSink) -> list[Path]:
        return [*leftovers(sink), temporary_of(part)]

    monkeypatch.setattr(PartsSink, "_leftovers", renamed_meanwhile)
    with opened(out) as second:
        assert second.rows == 5


def test_a_task_that_is_at_its_renaming_when_another_run_begins_brings_nothing(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part's name may be one that this run gives, too."""
    first = opened(out, read_keys=False)
    late = first.writer()
    abandon(first)
    renaming, begun, failed = threading.Event(), threading.Event(), []
    replace, write_about = os.replace, PartsSink._write_about

    def write() -> None:
        try:
            late.write(0, made(KEYS[:5]))
        except SinkError as error:
            failed.append(error)

    task = threading.Thread(target=write, daemon=True)

    def held(*paths: Any) -> None:
        if threading.current_thread() is task:
            renaming.set()
            begun.wait()
        replace(*paths)

    def written_meanwhile(sink: PartsSink, *what: Any) -> None:
        task.start()
        renaming.wait()
        write_about(sink, *what)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", held)
        patched.setattr(PartsSink, "_write_about", written_meanwhile)
        second = opened(out, read_keys=False)
        begun.set()
        task.join()
    with second:
        assert not second._parts()
    assert failed


def test_tasks_write_nothing_to_a_run_that_began_where_theirs_had_left_nothing(out: str) -> None:
    with opened(out, read_keys=False) as first:
        late = first.writer()
        first.leave()
    with opened(out, read_keys=False) as second:
        with pytest.raises(SinkError, match="another run goes on with this output"):
            late.write(0, made(KEYS[:5]))
        second.leave()


def test_a_part_is_not_written_where_the_outputs_folder_is_another(tmp_path: Path) -> None:
    with opened("a.jsonl", read_keys=False) as sink:
        writer = replace(sink.writer(), folder=tmp_path)
        with pytest.raises(SinkError, match="give --out a name in a folder that all nodes share"):
            writer.write(0, made(KEYS[:1]))
        assert not list(tmp_path.glob("part*"))
        sink.leave()
