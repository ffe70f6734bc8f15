"""Rows as text: CSV, and JSON a line.

Scores have nine digits, which give a float32 back exactly. Keys are escaped (`pipeline.samples.keys`).
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.samples.keys import escape_all, unescape
from pipeline.sinks.base import About
from pipeline.sinks.rows import COLUMNS, Rows, writable

ROWS_AT_A_TIME = 1 << 14
# Of a field. A name in a shard may be longer than the csv module takes unasked.
MOST_CHARACTERS = 1 << 30
QUOTED = re.compile('[",\r\n]')
HEADER = (",".join(COLUMNS) + "\n").encode()


class CsvFormat:
    """RFC 4180 with a header line; `top_ids` and `top_scores` are numbers with spaces between."""

    suffix = ".csv"
    tells = False

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self._names = None if class_names is None else [_quoted(writable(name)) for name in class_names]

    def write(self, file: BinaryIO, rows: Rows, about: About) -> None:
        file.write(HEADER)
        for line in _lines(rows, self._line(rows.top_ids.shape[1]), self._names, "", _all_quoted, self._error):
            file.write(line)

    def keys(self, path: Path) -> Iterator[tuple[list[str], int]]:
        for lines in self._read(path):
            yield [line[0] for line in lines], sum(bool(line[-1]) for line in lines)

    def read(self, path: Path) -> Iterator[Rows]:
        for lines in self._read(path):
            yield _rows(
                (key, class_id, score, ids.split(), scores.split(), error or None)
                for key, class_id, _, score, ids, scores, error in lines
            )

    def join(self, parts: Sequence[Path], file: BinaryIO, about: About) -> None:
        file.write(HEADER)
        for part in parts:
            with open(part, "rb") as opened:
                opened.seek(len(HEADER))
                shutil.copyfileobj(opened, file)

    def about(self, path: Path) -> About | None:
        return None

    def _read(self, path: Path) -> Iterator[list[list[str]]]:
        csv.field_size_limit(max(csv.field_size_limit(), MOST_CHARACTERS))
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            if next(lines, None) != list(COLUMNS):
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            while some := list(islice(lines, ROWS_AT_A_TIME)):
                if any(len(line) != len(COLUMNS) for line in some):
                    raise ValueError(f"a line does not have {len(COLUMNS)} columns")
                yield some

    def _line(self, k: int) -> str:
        return f"%s,%d,%s,%.9g,{' '.join(['%d'] * k)},{' '.join(['%.9g'] * k)},\n"

    def _error(self, key: str, why: str) -> str:
        return f"{key},,,,,,{_quoted(why)}\n"


class JsonlFormat:
    """An object a line, with the columns as its names; what is missing is null."""

    suffix = ".jsonl"
    tells = False

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self._names = None if class_names is None else [encode_basestring(writable(name)) for name in class_names]

    def write(self, file: BinaryIO, rows: Rows, about: About) -> None:
        for line in _lines(rows, self._line(rows.top_ids.shape[1]), self._names, "null", _all_strings, self._error):
            file.write(line)

    def keys(self, path: Path) -> Iterator[tuple[list[str], int]]:
        for lines in self._read(path):
            yield [line["key"] for line in lines], sum(line["error"] is not None for line in lines)

    def read(self, path: Path) -> Iterator[Rows]:
        for lines in self._read(path):
            yield _rows(
                (line["key"], line["class_id"], line["score"], line["top_ids"], line["top_scores"], line["error"])
                for line in lines
            )

    def join(self, parts: Sequence[Path], file: BinaryIO, about: About) -> None:
        for part in parts:
            with open(part, "rb") as opened:
                shutil.copyfileobj(opened, file)

    def about(self, path: Path) -> About | None:
        return None

    def _read(self, path: Path) -> Iterator[list[dict[str, Any]]]:
        with open(path, "rb") as file:
            while some := list(islice(file, ROWS_AT_A_TIME)):
                yield [json.loads(line) for line in some]

    def _line(self, k: int) -> str:
        ids, scores = ", ".join(["%d"] * k), ", ".join(["%.9g"] * k)
        return (
            '{"key": %s, "class_id": %d, "class_name": %s, "score": %.9g, '
            f'"top_ids": [{ids}], "top_scores": [{scores}], "error": null}}\n'
        )

    def _error(self, key: str, why: str) -> str:
        nothing = ", ".join(f'"{name}": null' for name in COLUMNS[1:-1])
        return f'{{"key": {key}, {nothing}, "error": {encode_basestring(why)}}}\n'


def _lines(
    rows: Rows, line: str, names: Sequence[str] | None, no_name: str, as_keys: Any, as_error: Any
) -> Iterator[bytes]:
    """The rows as text, some ten thousand at a time: `line` filled with key, class, name, score, ids and scores."""
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        keys = as_keys(escape_all(rows.keys[part]))
        ids = rows.class_ids[part].tolist()
        wrong = {row - start: why for row, why in rows.errors.items() if part.start <= row < part.stop}
        if names is None:
            of_class: Iterable[str] = [no_name] * len(ids)
        elif wrong:
            of_class = [no_name if row in wrong else names[i] for row, i in enumerate(ids)]
        else:
            of_class = map(names.__getitem__, ids)
        top = zip(*rows.top_ids[part].T.tolist(), *rows.top_scores[part].T.tolist(), strict=True)
        filled = zip(keys, ids, of_class, rows.scores[part].tolist(), strict=True)
        text = [line % (*row, *best) for row, best in zip(filled, top, strict=True)]
        for row, why in wrong.items():
            text[row] = as_error(keys[row], writable(why))
        yield "".join(text).encode()


def _rows(lines: Iterable[tuple[str, Any, Any, Sequence[Any], Sequence[Any], str | None]]) -> Rows:
    """Rows of (key, class, score, ids, scores, error); numbers may be text, and what is missing anything."""
    keys, ids, scores, top_ids, top_scores, errors = zip(*lines, strict=True)
    wrong = {row: why for row, why in enumerate(errors) if why is not None}
    good = [row for row in range(len(keys)) if row not in wrong]
    k = len(top_ids[good[0]]) if good else 1
    n = len(keys)
    rows = Rows(
        [unescape(key) for key in keys],
        np.zeros(n, np.int32), np.zeros(n, np.float32), np.zeros((n, k), np.int32), np.zeros((n, k), np.float32),
        wrong,
    )  # fmt: skip
    if good:
        rows.class_ids[good] = np.array([ids[row] for row in good]).astype(np.int32)
        rows.scores[good] = np.array([scores[row] for row in good]).astype(np.float32)
        rows.top_ids[good] = np.array([top_ids[row] for row in good]).astype(np.int32)
        rows.top_scores[good] = np.array([top_scores[row] for row in good]).astype(np.float32)
    return rows


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


def _all_quoted(keys: Sequence[str]) -> Sequence[str]:
    return [_quoted(key) for key in keys] if QUOTED.search("".join(keys)) else keys


def _all_strings(keys: Sequence[str]) -> Sequence[str]:
    return [encode_basestring(key) for key in keys]
