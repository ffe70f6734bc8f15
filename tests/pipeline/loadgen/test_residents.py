from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loadgen.residents import Residents


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


class Table(Residents):
    """Residents whose samples arrive at once, in slots that are counted as the session counts them."""

    def __init__(self, samples: int, slots: int) -> None:
        super().__init__(samples, slots)
        self.slots = set(range(slots))

    def fetch(self, *samples: int, at_any_cost: bool = False) -> list[int]:
        """Claim slots for samples and have them arrive; returns the slots that were given back for it."""
        given = self.claim(ints(*samples), at_any_cost=at_any_cost)
        self.slots |= set(given)
        for sample in samples:
            self.arrive(sample, self.slots.pop())
        return given

    def pin(self, *samples: int) -> None:
        self.load(ints(*samples))
        self.fetch(*self.missing(ints(*samples)).tolist(), at_any_cost=True)


def test_what_is_missing_is_neither_there_nor_coming() -> None:
    table = Table(samples=6, slots=4)
    table.fetch(4)
    table.claim(ints(2))
    assert table.missing(ints(4, 1, 2, 1)).tolist() == [1]
    assert table.free == 2
    table.fail(2)
    assert table.missing(ints(4, 1, 2)).tolist() == [1, 2]
    assert table.free == 3


def test_loaded_samples_are_never_evicted() -> None:
    table = Table(samples=5, slots=2)
    table.pin(0)
    table.pin(1)
    with pytest.raises(ValueError, match="1 more samples, and 0 slots"):
        table.pin(2)


def test_unloaded_samples_stay_until_their_slot_is_needed() -> None:
    table = Table(samples=5, slots=2)
    table.pin(0, 1)
    table.unload(ints(0, 1))
    assert table.slots_of(ints(0, 1)).size == 2
    table.pin(1, 2)
    with pytest.raises(ValueError, match="never loaded"):
        table.slots_of(ints(0))


def test_spent_samples_go_before_those_that_were_never_asked_for() -> None:
    table = Table(samples=9, slots=4)
    table.fetch(7, 8)
    table.pin(0, 1)
    assert (table.free, table.spent) == (0, 0)
    table.unload(ints(1, 1, 0))
    assert table.spent == 2
    first = int(table.slots_of(ints(0))[0])
    assert table.fetch(5) == [first]
    table.pin(2)
    assert table.slots_of(ints(2, 5, 7, 8)).size == 4
    # Those that nobody asked for go last, and only for what is loaded.
    with pytest.raises(ValueError, match="0 slots"):
        table.fetch(6)
    table.pin(3)
    assert table.slots_of(ints(2, 3, 7, 8)).size == 4, "the first of them has gone"


def test_a_sample_that_is_coming_keeps_its_slot() -> None:
    table = Table(samples=5, slots=2)
    table.claim(ints(3))
    table.pin(0)
    with pytest.raises(ValueError, match="0 slots"):
        table.pin(1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 19), max_size=6, unique=True)), max_size=40))
def test_no_slot_ever_has_two_owners(steps: list[tuple[bool, list[int]]]) -> None:
    table = Table(samples=20, slots=8)
    loaded: set[int] = set()
    for load, samples in steps:
        if load and len(loaded | set(samples)) <= 8:
            table.pin(*samples)
            loaded |= set(samples)
        elif not load:
            table.unload(ints(*samples))
            loaded -= set(samples)
        owned = table.slots_of(ints(*sorted(loaded))).tolist()
        assert len(set(owned)) == len(owned)
        resident = [s for s in table._slot_of.tolist() if s >= 0]
        assert not [a for a, b in itertools.pairwise(sorted(resident)) if a == b]
        assert len(resident) + table.free == 8
