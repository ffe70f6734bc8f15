from __future__ import annotations

from pipeline.words import counted


def test_one_is_singular_and_no_other_number() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
