"""Sources by columns are the sources one by one."""

from __future__ import annotations

import pickle

import pytest

from pipeline.samples.sources import (
    SOME,
    BytesLocator,
    FailedLocator,
    Locator,
    PathLocator,
    Paths,
    RangeLocator,
    Ranges,
    Source,
    Sources,
    joined_locators,
    some_at_a_time,
)

FILES = [Source(f"{n}.jpg", PathLocator(f"d/{n}.jpg"), label=None if n == 1 else n) for n in range(5)]
MEMBERS = [Source(f"s.tar/{n}", RangeLocator("s.tar", 512 * n, n)) for n in range(5)]
OTHERS: list[Locator] = [BytesLocator(b"x"), FailedLocator("p", "gone"), RangeLocator("t.tar", 0, 1)]
MIXED = [*FILES[:2], *MEMBERS[:2], *(Source(f"{n}", locator) for n, locator in enumerate(OTHERS))]


@pytest.mark.parametrize(("rows", "kind"), [(FILES, Paths), (MEMBERS, Ranges), (MIXED, list), ([], Paths)])
def test_columns(rows: list[Source], kind: type) -> None:
    columns = Sources.of(rows)
    assert type(columns.locators) is kind
    for made in (columns, pickle.loads(pickle.dumps(columns))):
        assert list(made) == rows
        assert list(made.locators) == [row.locator for row in rows]
        assert [made[at] for at in range(len(made))] == rows
        assert list(made[1:3]) == rows[1:3]
        assert list(made.take([at for at in (4, 0, 2) if at < len(rows)])) == [rows[at] for at in (4, 0, 2) if rows]
    assert (columns.labels is None) == all(row.label is None for row in rows)
    assert list(Sources.joined([columns[:2], columns[2:3], columns[3:]])) == rows
    assert list(Sources.joined([columns, Sources.of(MEMBERS)])) == rows + MEMBERS


def test_locators_put_together_stay_what_costs_little_to_send() -> None:
    paths, ranges = Sources.of(FILES).locators, Sources.of(MEMBERS).locators
    assert isinstance(joined_locators([paths[:2], paths[2:]]), Paths)
    assert joined_locators([ranges]) is ranges
    assert isinstance(joined_locators([ranges[:2], ranges[2:]]), Ranges)
    assert list(joined_locators([paths, ranges])) == [*paths, *ranges]
    others = Ranges("t.tar", ranges.places) if isinstance(ranges, Ranges) else ranges
    assert list(joined_locators([ranges, others])) == [*ranges, *others]


def test_labels_that_are_known_afterwards() -> None:
    columns = Sources.of(MEMBERS[:2])
    assert [source.label for source in columns.labelled([None, 7])] == [None, 7]
    assert columns.labelled([None, None]).labels is None


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 keys, 1 locators"):
        Sources(["a", "b"], Paths(["a"]))
    with pytest.raises(ValueError, match="1 keys"):
        Sources(["a"], Paths(["a"]), [1, 2])


def test_sources_come_some_at_a_time() -> None:
    parts = list(some_at_a_time(FILES[at % 5] for at in range(2 * SOME + 3)))
    assert [row for part in parts for row in part] == [FILES[at % 5] for at in range(2 * SOME + 3)]
    assert all(0 < len(part) <= SOME for part in parts)
    assert list(some_at_a_time([])) == []
