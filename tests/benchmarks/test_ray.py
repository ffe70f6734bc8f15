"""The rate that is compared with and without Ray. No Ray is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

from benchmarks import ray


def test_the_time_begins_where_the_first_table_is_made_and_ends_where_the_last_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables may come in another order than they were made in, and long after."""
    monkeypatch.setattr(ray, "time", SimpleNamespace(monotonic=lambda: 110.0))
    tables = [pa.table({ray.MADE: [made] * rows}) for made, rows in ((103.0, 7), (100.0, 50), (104.0, 13))]
    assert ray.rate(tables) == (7 + 13) / 10.0
