"""The sample store: decoded samples in the arena, loaded on demand by the decode stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import ImageError, PipelineError
from pipeline.memory.arena import Arena
from pipeline.samples.images import ImageRules
from pipeline.samples.library import SampleLibrary
from pipeline.session.slots import Indices, Slots, SlotTable
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.decode import (
    FILES_PER_TASK,
    NO_SLOT,
    DecodeResult,
    DecodeWork,
    LoaderSpec,
    decode_stage,
)
from pipeline.stages.lost import Lost, triage
from pipeline.telemetry.metrics import StageSnapshot


@dataclass(frozen=True)
class BadFile:
    """A file that cannot become a sample. `number` is its place in the library as it was given."""

    number: int
    path: Path
    why: str


class SampleStore:
    """Samples of a library, in arena slots.

    A file keeps its number for the whole run. Samples, as LoadGen counts them, are the files that are
    left after `drop`, in the same order.
    """

    def __init__(
        self,
        library: SampleLibrary,
        arena: Arena,
        *,
        size: int,
        resize: int | None,
        loaders: int,
        cores: tuple[frozenset[int], ...] = (),
        timeout_s: float,
        image_timeout_s: float,
        on_failure: Callable[[StageFailure], None],
        traced: bool = False,
        rules: ImageRules | None = None,
    ) -> None:
        self._paths = library.paths
        self._file_of: Indices = np.arange(len(library), dtype=np.int64)
        self._slot_count = arena.spec.slots
        self._table = SlotTable(len(library), self._slot_count)
        self._bad: list[BadFile] = []
        self._tickets = itertools.count()  # drawn from by the thread that loads and by the stage's
        self.decode = decode_stage(
            LoaderSpec(arena.spec, library.paths, library.kind, size, resize, cores, traced, rules or ImageRules()),
            loaders=loaders,
            timeout_s=timeout_s,
            image_timeout_s=image_timeout_s,
            on_result=self._on_decoded,
            on_lost=self._on_lost,
            on_failure=on_failure,
        )

    def check(self) -> tuple[BadFile, ...]:
        """Decode every file once; as many good ones as fit stay resident. Returns the bad ones."""
        files = np.arange(len(self._paths), dtype=np.int64)
        resident = files[: self._slot_count]
        slots = np.full(len(files), NO_SLOT, dtype=np.int32)
        slots[: len(resident)] = self._table.claim(resident)
        bad = self._decode(files, slots)
        self._table.release(np.array([b.number for b in bad], dtype=np.int64))
        return bad

    def drop(self, bad: tuple[BadFile, ...]) -> Indices:
        """Take bad files out of the samples; returns the files that are left, int64 (n,)."""
        self._file_of = np.setdiff1d(self._file_of, [b.number for b in bad])
        return self._file_of

    def load(self, samples: Indices) -> None:
        """Make `samples` resident and keep them so until `unload`.

        Raises ImageError when a file that was good at `check` has gone bad, PipelineError when more
        samples are loaded at once than there are slots.
        """
        try:
            missing, slots = self._table.pin(self._file_of[samples])
        except ValueError as error:
            raise PipelineError(f"the arena has {self._slot_count} slots: {error}") from error
        bad = self._decode(missing, slots)
        if bad:
            self._table.release(np.array([b.number for b in bad], dtype=np.int64))
            raise ImageError(bad[0].path, f"{bad[0].why} (it could be read when the run began)")

    def unload(self, samples: Indices) -> None:
        self._table.unpin(self._file_of[samples])

    def slots_of(self, samples: Indices) -> Slots:
        """The arena slots of loaded `samples` (n,), int32 (n,)."""
        return self._table.slots_of(self._file_of[samples])

    @property
    def progress(self) -> tuple[int, int]:
        """Files of the present or the last load that are done, and all of them."""
        return self._to_load - self._left, self._to_load

    def snapshot(self) -> StageSnapshot:
        return self.decode.snapshot()

    def _decode(self, files: Indices, slots: Slots) -> tuple[BadFile, ...]:
        self._bad = []
        self._to_load = self._left = len(files)
        for begin in range(0, len(files), FILES_PER_TASK):
            some = slice(begin, begin + FILES_PER_TASK)
            self.decode.submit(self._task(DecodeWork(files[some].astype(np.int32), slots[some])))
        self.decode.drain()
        return tuple(sorted(self._bad, key=lambda b: b.number))

    def _task(self, work: DecodeWork) -> Task[DecodeWork]:
        return Task(next(self._tickets), len(work.files), work)

    def _on_decoded(self, _task: Task[DecodeWork], result: DecodeResult) -> None:
        self._left -= _task.samples
        self.decode.count_failed(len(result.bad))
        self._bad.extend(BadFile(number, self._paths[number], why) for number, why in result.bad)

    def _on_lost(self, task: Task[DecodeWork], lost: Lost) -> None:
        blame, again = triage(task.samples, lost)
        if blame is not None:
            number = int(task.body.files[blame])
            self._on_decoded(task, DecodeResult(((number, f"its loader {lost.why}"),)))
        for items in again:
            self.decode.put_back(self._task(task.body.only(items)))
