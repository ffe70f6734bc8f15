"""Who owns a slot: the one table from samples to arena slots.

A slot belongs to at most one sample, from the moment it is claimed until it is taken back. A sample is
resident while it owns a slot, and pinned while LoadGen has it loaded; a resident sample that is not
pinned stays, decoded, until its slot is needed for another. It is spent when it was pinned before: spent samples go
before those that were never asked for.
"""

from __future__ import annotations

from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]
Slots: TypeAlias = npt.NDArray[np.int32]
Flags: TypeAlias = npt.NDArray[np.bool_]

NOT_RESIDENT = -1


class SlotTable:
    """`samples` samples over `slots` slots. One thread at a time changes it; reading pinned samples' slots is safe."""

    def __init__(self, samples: int, slots: int) -> None:
        self._slot_of = np.full(samples, NOT_RESIDENT, dtype=np.int32)
        self._pinned = np.zeros(samples, dtype=np.bool_)
        self._free = list(range(slots - 1, -1, -1))
        self._spent: dict[int, None] = {}  # longest ago first

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def spent(self) -> int:
        """Resident samples that were pinned before and are not now."""
        return len(self._spent)

    def claim(self, samples: Indices) -> Slots:
        """Give each of `samples` (n,), none of them resident, a free slot or that of a spent sample; int32 (n,).

        Raises ValueError when there are too few, or a sample has one already.
        """
        if len(samples) > len(self._free) + len(self._spent):
            raise ValueError(f"{len(samples)} samples for {len(self._free) + len(self._spent)} free slots")
        if len(np.unique(samples)) != len(samples) or (self._slot_of[samples] != NOT_RESIDENT).any():
            raise ValueError("a sample can own only one slot")
        short = max(0, len(samples) - len(self._free))
        self.release(np.fromiter(islice(self._spent, short), dtype=np.int64, count=short))
        slots = np.array([self._free.pop() for _ in range(len(samples))], dtype=np.int32)
        self._slot_of[samples] = slots
        return slots

    def release(self, samples: Indices) -> None:
        """Take back the slots of `samples` and unpin them; samples that own none are passed over."""
        resident = np.unique(samples[self._slot_of[samples] != NOT_RESIDENT])
        self._free.extend(self._slot_of[resident].tolist())
        self._slot_of[resident] = NOT_RESIDENT
        self._pinned[resident] = False
        for sample in resident.tolist():
            self._spent.pop(sample, None)

    def pin(self, samples: Indices, keep: Flags | None = None) -> tuple[Indices, Slots]:
        """Pin `samples`, and give those that own no slot one, at the cost of samples that nobody pins.

        Samples of `keep`, bool (samples,), lose none. Returns the samples that got a new slot, each once, and those
        slots: they are to be filled now. Raises ValueError when the pinned samples do not fit.
        """
        self._pinned[samples] = True
        for sample in samples.tolist():
            self._spent.pop(sample, None)
        missing = np.unique(samples[self._slot_of[samples] == NOT_RESIDENT])
        short = len(missing) - len(self._free) - len(self._spent)
        if short > 0:
            never_pinned = (self._slot_of != NOT_RESIDENT) & ~self._pinned
            never_pinned[list(self._spent)] = False
            if keep is not None:
                never_pinned &= ~keep
            self.release(np.flatnonzero(never_pinned)[:short])
        return missing, self.claim(missing)

    def unpin(self, samples: Indices) -> None:
        freed = np.unique(samples[self._pinned[samples] & (self._slot_of[samples] != NOT_RESIDENT)])
        self._pinned[samples] = False
        self._spent.update(dict.fromkeys(freed.tolist()))

    def slots_of(self, samples: Indices) -> Slots:
        """The slots of `samples` (n,). Raises ValueError when one of them owns none."""
        slots = self._slot_of[samples]
        if (slots == NOT_RESIDENT).any():
            missing = samples[slots == NOT_RESIDENT][:5].tolist()
            raise ValueError(f"samples {missing} were asked for but never loaded")
        return slots
