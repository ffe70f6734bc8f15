"""Rows in Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.extras import require
from pipeline.samples.keys import escape_all, unescape
from pipeline.sinks.base import About
from pipeline.sinks.rows import Rows, writable
from pipeline.telemetry.interpreter import beside_python

ROWS_PER_GROUP = 1 << 16
# Its keys in the file's metadata, apart from those of Arrow and pandas.
PREFIX = "classify."
MARK = PREFIX.encode()
# Which of these keys are the identity.
IDENTITY = "identity"


class ParquetFormat:
    """`class_names` by class, or None. Raises PipelineError without pyarrow."""

    suffix = ".parquet"
    tells = True

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self._class_names = class_names
        self._pa = pa = require("pyarrow", "data", "a .parquet output")
        self._pq = require("pyarrow.parquet", "data", "a .parquet output")
        self._names = None if class_names is None else pa.array([writable(name) for name in class_names], pa.string())
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                ("class_id", pa.int32()),
                ("class_name", pa.string()),
                ("score", pa.float32()),
                ("top_ids", pa.list_(pa.int32())),
                ("top_scores", pa.list_(pa.float32())),
                ("error", pa.string()),
            ]
        )

    def __reduce__(self) -> tuple[type[ParquetFormat], tuple[Sequence[str] | None]]:
        return ParquetFormat, (self._class_names,)

    def write(self, file: BinaryIO, rows: Rows, about: About) -> None:
        table = self.table(rows)
        with self._writer(file, about) as writer, beside_python():
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)

    def keys(self, path: Path) -> Iterator[tuple[list[str], int]]:
        with open(path, "rb") as file:
            parquet = self._pq.ParquetFile(file)
            statistics = [self._nulls(parquet.metadata.row_group(n)) for n in range(parquet.num_row_groups)]
            # Were a file without statistics here, its errors would have to be read.
            known = all(nulls is not None for nulls in statistics)
            columns = ["key"] if known else ["key", "error"]
            if known:
                yield [], parquet.metadata.num_rows - sum(nulls or 0 for nulls in statistics)
            for batch in parquet.iter_batches(ROWS_PER_GROUP, columns=columns, use_threads=False):
                errors = 0 if known else batch.num_rows - batch.column(1).null_count
                yield batch.column(0).to_pylist(), errors

    def read(self, path: Path) -> Iterator[Rows]:
        with open(path, "rb") as file:
            for batch in self._pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP, use_threads=False):
                yield self.rows(batch)

    def rows(self, batch: Any) -> Rows:
        """The rows in a record batch with the columns of `table`."""
        column = dict(zip(batch.schema.names, batch.columns, strict=True))
        answered = column["class_id"].is_valid().to_numpy(zero_copy_only=False)
        shape = (batch.num_rows, _width(column["top_ids"]))
        top_ids, top_scores = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        top_ids[answered] = column["top_ids"].flatten().to_numpy().reshape(-1, shape[1])
        top_scores[answered] = column["top_scores"].flatten().to_numpy().reshape(-1, shape[1])
        wrong = np.flatnonzero(~answered)
        return Rows(
            [unescape(key) for key in column["key"].to_pylist()],
            column["class_id"].fill_null(0).to_numpy(),
            column["score"].fill_null(0).to_numpy(),
            top_ids,
            top_scores,
            dict(zip(wrong.tolist(), column["error"].take(self._pa.array(wrong)).to_pylist(), strict=True)),
        )

    def join(self, parts: Sequence[Path], file: BinaryIO, about: About) -> None:
        """Row groups of parts that were cut by time are small: they are put together to whole ones."""
        with self._writer(file, about) as writer:
            waiting: list[Any] = []
            count = 0
            for part in parts:
                with open(part, "rb") as opened:
                    for batch in self._pq.ParquetFile(opened).iter_batches(ROWS_PER_GROUP, use_threads=False):
                        waiting.append(batch)
                        count += batch.num_rows
                        if count >= ROWS_PER_GROUP:
                            writer.write_table(self._joined(waiting), row_group_size=count)
                            waiting, count = [], 0
            if waiting:
                writer.write_table(self._joined(waiting), row_group_size=count)

    def about(self, path: Path) -> About | None:
        try:
            with open(path, "rb") as file:
                metadata = self._pq.read_schema(file).metadata or {}
        except self._pa.ArrowException:
            return None
        ours = {key.decode()[len(PREFIX) :]: value.decode() for key, value in metadata.items() if key.startswith(MARK)}
        if IDENTITY not in ours:
            return None
        identity = json.loads(ours.pop(IDENTITY))
        return About({name: ours.pop(name) for name in identity}, ours)

    def _joined(self, batches: list[Any]) -> Any:
        return self._pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches], self._schema)

    def _writer(self, file: BinaryIO, about: About) -> Any:
        says = {**about.notes, **about.identity, IDENTITY: json.dumps(list(about.identity))}
        metadata = {f"{PREFIX}{key}": value for key, value in says.items()}
        # A dictionary pays for what repeats; keys and scores do not.
        return self._pq.ParquetWriter(
            file, self._schema.with_metadata(metadata), compression="zstd", use_dictionary=["class_name", "error"]
        )

    def table(self, rows: Rows) -> Any:
        """The rows as an Arrow table, whose columns are those of the file."""
        pa, n = self._pa, len(rows)
        missing = ~rows.answered() if rows.errors else None
        class_id = pa.array(rows.class_ids, mask=missing)
        error: list[str | None] = [None] * (n if rows.errors else 0)
        for row, why in rows.errors.items():
            error[row] = writable(why)
        return pa.Table.from_arrays(
            [
                pa.array(escape_all(rows.keys), pa.string()),
                class_id,
                pa.nulls(n, pa.string()) if self._names is None else self._names.take(class_id),
                pa.array(rows.scores, mask=missing),
                self._lists(rows.top_ids, missing),
                self._lists(rows.top_scores, missing),
                pa.array(error, pa.string()) if rows.errors else pa.nulls(n, pa.string()),
            ],
            schema=self._schema,
        )

    def _lists(self, values: Any, missing: Any) -> Any:
        pa, (n, k) = self._pa, values.shape
        offsets = pa.array(np.arange(0, (n + 1) * k, k, dtype=np.int32))
        mask = None if missing is None else pa.array(missing)
        return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)), mask=mask)

    def _nulls(self, row_group: Any) -> int | None:
        """How many rows of `row_group` are not errors, as its statistics have it."""
        statistics = row_group.column(row_group.num_columns - 1).statistics
        return int(statistics.null_count) if statistics is not None and statistics.has_null_count else None


def _width(lists: Any) -> int:
    """How long the lists are that are there."""
    lengths = lists.value_lengths().drop_null()
    return int(lengths[0].as_py()) if len(lengths) else 1
