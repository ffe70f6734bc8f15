"""Host side of `boxed_teams.cuh` and `residual_boxes.cuh`: what the kernels share whose residual comes in boxes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.kernel import Grid, resident_grid
from int4core.errors import EngineError

BOX_ROW = 128
"""Bytes of a row that one copy takes."""

BOX_CHANNELS = 2 * BOX_ROW
"""Channels of them."""

ALIGNMENT = 1024
"""Of a swizzled box in shared memory; what lies before the dynamic part need not keep it."""

BARRIER_BYTES = 256
"""At least what the barriers of MOST_SLOTS slots take."""

MOST_SLOTS = 4
"""Slots of a ring: more have nothing left to hide."""


class BoxedTeams(ABC):
    """Warpgroups of a block, each with its own tiles and a ring of slots; the block's weights stay in shared memory."""

    chip: Chip

    @property
    @abstractmethod
    def teams(self) -> int: ...

    @property
    @abstractmethod
    def tiles(self) -> int:
        """Of all teams."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Of output channels: a block makes one."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Of a block."""

    @property
    @abstractmethod
    def slot_bytes(self) -> int:
        """Of what a tile reads."""

    @property
    @abstractmethod
    def static_bytes(self) -> int:
        """Of static shared memory, besides the barriers."""

    @property
    def threads(self) -> int:
        return 128 * (self.teams + 1)

    @property
    def slots(self) -> int:
        """Of a team: as many as fit, below two where they do not."""
        room: int = self.chip.shared_bytes - self.static_bytes - BARRIER_BYTES - ALIGNMENT - self.weight_bytes
        return min(MOST_SLOTS, room // (self.teams * self.slot_bytes))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return ALIGNMENT + self.weight_bytes + self.teams * self.slots * self.slot_bytes

    @property
    def grid(self) -> Grid:
        return resident_grid(self.chip, math.ceil(self.tiles / self.teams), self.columns)

    def check_slots(self) -> None:
        """Raises EngineError where two slots a team do not fit."""
        if self.slots < 2:
            raise EngineError("two slots do not fit shared memory")
