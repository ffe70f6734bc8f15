from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.session.slots import SlotTable


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_pinning_fills_free_slots_and_answers_with_what_is_new() -> None:
    table = SlotTable(samples=5, slots=3)
    new, slots = table.pin(ints(4, 1, 4))
    assert new.tolist() == [1, 4]
    assert len(set(slots.tolist())) == 2
    again, none = table.pin(ints(4))
    assert again.size == 0
    assert none.size == 0
    assert table.slots_of(ints(1, 4)).tolist() == slots.tolist()


def test_pinned_samples_are_never_evicted() -> None:
    table = SlotTable(samples=5, slots=2)
    table.pin(ints(0))
    table.pin(ints(1))
    with pytest.raises(ValueError, match="free slots"):
        table.pin(ints(2))


def test_unpinned_samples_stay_until_their_slot_is_needed() -> None:
    table = SlotTable(samples=5, slots=2)
    table.pin(ints(0, 1))
    table.unpin(ints(0, 1))
    new, _ = table.pin(ints(1, 2))
    assert new.tolist() == [2]
    with pytest.raises(ValueError, match="never loaded"):
        table.slots_of(ints(0))


def test_spent_samples_go_before_those_that_were_never_asked_for() -> None:
    table = SlotTable(samples=9, slots=4)
    table.claim(ints(7, 8))
    table.pin(ints(0, 1))
    assert (table.free, table.spent) == (0, 0)
    table.unpin(ints(1, 1, 0))
    assert table.spent == 2
    table.claim(ints(5))
    table.pin(ints(2))
    assert table.slots_of(ints(2, 5, 7, 8)).size == 4
    with pytest.raises(ValueError, match="never loaded"):
        table.slots_of(ints(0))
    # Those that nobody asked for go last, and those that are kept do not go.
    keep = np.zeros(9, dtype=np.bool_)
    keep[[5, 7]] = True
    table.pin(ints(3), keep)
    assert table.slots_of(ints(2, 3, 5, 7)).size == 4
    with pytest.raises(ValueError, match="free slots"):
        table.pin(ints(4), keep)


def test_a_sample_claims_one_slot() -> None:
    table = SlotTable(samples=5, slots=5)
    table.claim(ints(3))
    with pytest.raises(ValueError, match="only one slot"):
        table.claim(ints(3))
    with pytest.raises(ValueError, match="only one slot"):
        table.claim(ints(1, 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 19), max_size=6)), max_size=40))
def test_no_slot_ever_has_two_owners(steps: list[tuple[bool, list[int]]]) -> None:
    table = SlotTable(samples=20, slots=8)
    pinned: set[int] = set()
    for pin, samples in steps:
        if pin and len(pinned | set(samples)) <= 8:
            table.pin(ints(*samples))
            pinned |= set(samples)
        elif not pin:
            table.unpin(ints(*samples))
            pinned -= set(samples)
        owned = table.slots_of(ints(*sorted(pinned))).tolist()
        assert len(set(owned)) == len(owned)
        resident = [s for s in table._slot_of.tolist() if s >= 0]
        assert len(set(resident)) == len(resident)
        assert len(resident) + table.free == 8
