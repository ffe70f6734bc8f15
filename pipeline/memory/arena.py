"""The shared-memory arena: fixed-size sample slots that loaders fill and the engine reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pipeline.memory.segment import Segment, segment_folder, sweep_stale

# A cache line, so that no two loaders write to one. No more than that: a sample of 3 x 224 x 224 is a whole number of
# them, slots then lie back to back as a batch does on the device, and neighbouring slots are one copy.
SLOT_ALIGNMENT = 64
_LENGTH_BYTES = 4

__all__ = ["SLOT_ALIGNMENT", "Arena", "ArenaSpec", "segment_folder", "sweep_stale"]


@dataclass(frozen=True)
class ArenaSpec:
    """All that another process needs to map the arena: the file, and the shape of its slots.

    Attributes:
        path: the segment.
        slots: how many samples fit.
        sample_shape: (3, H, W); a sample is int8, so its bytes are their product.
        room: bytes that a slot holds at least: more than a sample where files may lie in it, to be decoded later.
    """

    path: str
    slots: int
    sample_shape: tuple[int, int, int]
    room: int = 0

    @property
    def sample_bytes(self) -> int:
        channels, height, width = self.sample_shape
        return channels * height * width

    @property
    def slot_bytes(self) -> int:
        return -(-max(self.sample_bytes, self.room) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT

    @property
    def total_bytes(self) -> int:
        return self.slots * (self.slot_bytes + _LENGTH_BYTES)


class Arena:
    """A mapped arena. The process that creates it owns its life; others attach to it.

    Attributes:
        lengths: of the file that lies in each slot, in bytes, uint32 (slots,); 0 where a sample does.
    """

    def __init__(self, spec: ArenaSpec, segment: Segment) -> None:
        self.spec = spec
        self._segment = segment
        slots, lengths = np.split(segment.bytes, [spec.slots * spec.slot_bytes])
        self._raw = slots.reshape(spec.slots, spec.slot_bytes)
        self._samples = self._raw.view(np.int8)[:, : spec.sample_bytes]
        self.lengths: npt.NDArray[np.uint32] = lengths.view(np.uint32)
        self._mapped = bytearray(spec.slots)

    @classmethod
    def create(
        cls,
        slots: int,
        sample_shape: tuple[int, int, int],
        folder: Path | None = None,
        *,
        room: int = 0,
        remedy: str = "hold fewer samples at a time",
    ) -> Arena:
        """Make a segment of `slots` samples of int8 `sample_shape` (3, H, W), or of files of less than `room` bytes.

        Raises PipelineError, ending in `remedy`, when the folder has no room for it.
        """
        shape = ArenaSpec("", slots, sample_shape, room)
        segment = Segment.create(shape.total_bytes, f"{slots} samples", remedy, folder)
        return cls(replace(shape, path=segment.path), segment)

    @classmethod
    def attach(cls, spec: ArenaSpec) -> Arena:
        """Map a segment that another process made. Raises PipelineError when it is gone."""
        return cls(spec, Segment.attach(spec.path, spec.total_bytes))

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """All slots, uint8 (total_bytes,): for a device that maps them."""
        return self._segment.bytes

    def map_slot(self, slot: int) -> None:
        """Spare this process the page faults of a slot that it is going to fill, the first time that it does."""
        if not self._mapped[slot]:
            begin = slot * self.spec.slot_bytes
            self._segment.map_pages(begin, begin + self.spec.slot_bytes)
            self._mapped[slot] = True

    def sample(self, slot: int) -> npt.NDArray[np.int8]:
        """The slot's sample as a writable view, int8 (3, H, W)."""
        sample: npt.NDArray[np.int8] = self._samples[slot]
        return sample.reshape(self.spec.sample_shape)

    def raw(self, slot: int) -> npt.NDArray[np.uint8]:
        """All bytes of the slot, a writable view, uint8 (slot_bytes,)."""
        raw: npt.NDArray[np.uint8] = self._raw[slot]
        return raw

    def heads(self, slots: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.uint8]:
        """Copy the first `size` bytes of `slots` (n,), uint8 (n, size)."""
        heads: npt.NDArray[np.uint8] = self._raw[slots, :size]
        return heads

    def gather(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
        """Copy the samples of `slots` (N,) into one array, int8 (N, 3, H, W)."""
        batch: npt.NDArray[np.int8] = self._samples[slots]
        return batch.reshape(len(slots), *self.spec.sample_shape)

    def close(self) -> None:
        """Unmap; the owner also removes the segment. Safe to call twice."""
        self._samples = np.empty((0, 0), dtype=np.int8)
        self._raw = np.empty((0, 0), dtype=np.uint8)
        self.lengths = np.empty(0, dtype=np.uint32)
        self._segment.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
