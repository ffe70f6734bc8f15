"""Which samples lie in which slots, and which of them LoadGen has loaded.

A sample is resident while a slot is its own, and loaded while LoadGen may ask for it. A resident sample that is not
loaded stays, decoded, until its slot is needed for another. It is spent when it was loaded before: spent samples go
before those that were never asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.arrays import Indices, Slots

Flags: TypeAlias = npt.NDArray[np.bool_]

NOT_RESIDENT = -1


class Residents:
    """`samples` samples over `slots` slots. One thread at a time changes it; slots of loaded samples may be read.

    A slot is claimed before a sample is decoded into it, so that more are never on their way than there is room for.

    Attributes:
        coming: samples that a slot was claimed for and that are not there yet, bool (samples,).
        loaded: samples that LoadGen has loaded, bool (samples,).
    """

    def __init__(self, samples: int, slots: int) -> None:
        self.coming: Flags = np.zeros(samples, dtype=np.bool_)
        self.loaded: Flags = np.zeros(samples, dtype=np.bool_)
        self._slot_of = np.full(samples, NOT_RESIDENT, dtype=np.int32)
        self._free = slots
        self._spent: dict[int, None] = {}  # longest ago first

    @property
    def free(self) -> int:
        """Slots that nobody has claimed."""
        return self._free

    @property
    def spent(self) -> int:
        return len(self._spent)

    @property
    def evictable(self) -> int:
        """Resident samples that are not loaded: their slots may be had at any cost."""
        return int(((self._slot_of != NOT_RESIDENT) & ~self.loaded).sum())

    def missing(self, samples: Indices) -> Indices:
        """Those of `samples` that are neither there nor coming, each once."""
        absent = samples[(self._slot_of[samples] == NOT_RESIDENT) & ~self.coming[samples]]
        return np.unique(absent)

    def load(self, samples: Indices) -> None:
        """LoadGen has `samples` loaded from now on, wherever they are."""
        self.loaded[samples] = True
        for sample in samples.tolist():
            self._spent.pop(sample, None)

    def unload(self, samples: Indices) -> None:
        """LoadGen does not ask for `samples` any more."""
        freed = np.unique(samples[self.loaded[samples] & (self._slot_of[samples] != NOT_RESIDENT)])
        self.loaded[samples] = False
        self._spent.update(dict.fromkeys(freed.tolist()))

    def claim(self, samples: Indices, *, at_any_cost: bool = False) -> list[int]:
        """Claim a slot for each of `samples`, at the cost of spent ones, or of any that is not loaded.

        Returns the slots that are to be given back for it. Raises ValueError when there are too few.
        """
        victims = list(self._victims(len(samples) - self._free, at_any_cost))
        if self._free + len(victims) < len(samples):
            raise ValueError(f"{len(samples)} more samples, and {self._free + len(victims)} slots for them")
        given = [self.release(victim) for victim in victims]
        self._free -= len(samples)
        self.coming[samples] = True
        return given

    def arrive(self, sample: int, slot: int) -> None:
        """A sample lies in the slot that was claimed for it."""
        self.coming[sample] = False
        self._slot_of[sample] = slot

    def fail(self, sample: int) -> None:
        """A sample that a slot was claimed for does not come."""
        self.coming[sample] = False
        self._free += 1

    def release(self, sample: int) -> int:
        """The slot of a resident sample, which is not its own any more."""
        slot = int(self._slot_of[sample])
        self._slot_of[sample] = NOT_RESIDENT
        self._spent.pop(sample, None)
        self._free += 1
        return slot

    def slots_of(self, samples: Indices) -> Slots:
        """The slots of `samples` (n,). Raises ValueError when one of them has none."""
        slots = self._slot_of[samples]
        if (slots == NOT_RESIDENT).any():
            missing = samples[slots == NOT_RESIDENT][:5].tolist()
            raise ValueError(f"samples {missing} were asked for but never loaded")
        return slots

    def _victims(self, count: int, at_any_cost: bool) -> Iterator[int]:
        """As many samples as there are whose slots may be taken, at most `count`: spent ones first."""
        if count <= 0:
            return
        spent = list(self._spent)[:count]
        yield from spent
        if at_any_cost:
            never_loaded = (self._slot_of != NOT_RESIDENT) & ~self.loaded
            never_loaded[list(self._spent)] = False
            yield from np.flatnonzero(never_loaded)[: count - len(spent)].tolist()
