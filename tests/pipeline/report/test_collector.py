"""What a report gathers of answers, against gathering them all."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report import collector
from pipeline.report.collector import LONGEST_TEXT, LOWEST, MOST_ERRORS, SCORE_BINS, Collector
from pipeline.samples.sources import BytesLocator, PathLocator, Source
from tests.pipeline.report.columns import Columns, columns

CLASSES = 7

answers = st.one_of(
    st.tuples(st.text(max_size=3), st.integers(0, CLASSES - 1), st.floats(0, 1, width=32)),
    st.tuples(st.text(max_size=3), st.sampled_from(["too large", "damaged"])),
)


@given(st.lists(st.lists(answers, max_size=40), max_size=6), st.integers(1, 50))
def test_it_is_what_all_answers_together_say(batches: list, chunk: int) -> None:
    with mock.patch.object(collector, "CHUNK", chunk):
        some = Collector(CLASSES)
        for batch in batches:
            some.add(columns(batch), [Source(a[0], PathLocator(a[0]), label=5) for a in batch])
        got = some.collected()
    every = [a for batch in batches for a in batch]
    good = [a for a in every if len(a) == 3]
    assert (got.answered, got.failed, got.scored) == (len(good), len(every) - len(good), len(good))
    assert got.classes.tolist() == [sum(a[1] == c for a in good) for c in range(CLASSES)]
    bins = [min(int(np.float32(a[2]) * np.float32(SCORE_BINS)), SCORE_BINS - 1) for a in good]
    assert got.scores.tolist() == np.bincount(np.array(bins, int), minlength=SCORE_BINS).tolist()
    lowest = sorted(good, key=lambda a: a[2])[:LOWEST]  # stable: what came first
    assert [(s.key, s.class_id, s.score) for s in got.lowest] == lowest
    errors = [a for a in every if len(a) == 2][:MOST_ERRORS]
    assert [(s.key, s.error) for s in got.errors] == errors
    assert all(s.locator == PathLocator(s.key) and s.label == 5 for s in got.lowest + got.errors)


def test_labels_by_key_count_before_the_sources_own() -> None:
    some = Collector(CLASSES, {"a": 1, "c": 2}.get)
    some.add(columns([("a", 1, 0.5), ("b", 2, 0.6), ("c", "x")]), [Source(k, PathLocator(k), 3) for k in "abc"])
    some.add_error(Source("a", PathLocator("a")), "y")
    got = some.collected()
    assert [s.label for s in got.lowest] == [1, None]
    assert [s.label for s in got.errors] == [1, 2]


def test_answers_without_scores_and_errors_one_by_one() -> None:
    some = Collector(CLASSES)
    some.add_classes(np.array([0, 6, 6], np.int32))
    some.add_error(Source("x.jpg", PathLocator("x.jpg")), "too large")
    got = some.collected()
    assert (got.answered, got.scored, got.failed, got.lowest) == (3, 0, 1, ())
    assert got.classes.tolist() == [1, 0, 0, 0, 0, 0, 2]
    assert [(s.key, s.error) for s in got.errors] == [("x.jpg", "too large")]


@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_class_that_is_none_of_the_models(wrong: int) -> None:
    some = Collector(CLASSES)
    some.add(columns([("a", wrong, 0.5)]))
    with pytest.raises(ValueError, match="of a model that has 7"):
        some.collected()


def test_what_is_kept_of_a_source_is_bounded() -> None:
    some = Collector(CLASSES)
    name, data = "n" * 10**6 + ".jpg", bytes(2**20 + 1)
    some.add(columns([(name, 0, 0.1), (name, "w" * 10**6)]), [Source(name, BytesLocator(data))] * 2)
    some.add(columns([("small", 0, 0.2)]), [Source("small", BytesLocator(b"image"))])
    got = some.collected()
    low, small = got.lowest
    assert len(low.key) == len(got.errors[0].error or "") == LONGEST_TEXT
    assert low.key.startswith("nnn")
    assert low.key.endswith("nn.jpg")
    assert low.locator is None
    assert small.locator == BytesLocator(b"image")


def test_memory_does_not_grow_with_the_answers() -> None:
    some = Collector(1000)
    rng = np.random.default_rng(1)
    n = 10_000

    def feed(times: int) -> None:
        for turn in range(times):
            # Each lower than all before, the worst there is; every fourth is an error.
            scores = (1 - (turn + rng.random(n)) / 1000).astype(np.float32)
            keys = [f"{turn}/{i}" for i in range(n)]
            rows = Columns(keys, rng.integers(0, 1000, n).astype(np.int32), scores, dict.fromkeys(range(0, n, 4), "x"))
            some.add(rows, [Source(key, PathLocator(key)) for key in keys])
        some.collected()

    feed(3)
    tracemalloc.start()
    try:
        feed(3)
        before = tracemalloc.get_traced_memory()[0]
        feed(12)
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()
    assert some.collected().answered == 18 * n * 3 // 4
