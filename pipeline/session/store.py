"""The sample store: decoded samples in the arena, loaded on demand by the decode stage, or ahead of demand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
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


class BadFiles(PipelineError):
    """Files that were to be loaded and cannot become samples."""

    def __init__(self, bad: tuple[BadFile, ...]) -> None:
        super().__init__("; ".join(f"{b.path}: {b.why}" for b in bad))
        self.bad = bad


class SampleStore:
    """Samples of a library, in arena slots.

    A file keeps its number for the whole run. Samples, as LoadGen counts them, are the files that are
    left after `drop`, in the same order.

    Args:
        at_a_time: samples that are loaded at a time, at most.
        ahead: whether every sample will be loaded sooner or later. From the first `load` on, files are then decoded
            into slots that no loaded sample needs, whatever else the run does.
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
        at_a_time: int = 0,
        ahead: bool = False,
    ) -> None:
        self._paths = library.paths
        self._file_of: Indices = np.arange(len(library), dtype=np.int64)
        self._slot_count = arena.spec.slots
        self._at_a_time = at_a_time
        self._on_failure = on_failure
        self._tickets = itertools.count()  # drawn from by the thread that loads and by the stage's
        # All below is guarded by this; it is never held in a call of the stage, whose thread comes here.
        self._changed = threading.Condition()
        self._table = SlotTable(len(library), self._slot_count)
        self._known = np.zeros(len(library), dtype=np.bool_)  # decoded before, for better or worse
        self._coming = np.zeros(len(library), dtype=np.bool_)
        self._bad: dict[int, BadFile] = {}
        self._wanted: Indices = np.empty(0, dtype=np.int64)
        self._loaded: Indices = np.empty(0, dtype=np.int64)
        self._next = 0  # all files before it were decoded or are coming
        self._over: PipelineError | None = None
        self._ahead = threading.Thread(target=self._decode_ahead, name="ahead", daemon=True) if ahead else None
        self.decode = decode_stage(
            LoaderSpec(arena.spec, library.paths, library.kind, size, resize, cores, traced, rules or ImageRules()),
            loaders=loaders,
            timeout_s=timeout_s,
            image_timeout_s=image_timeout_s,
            on_result=self._on_decoded,
            on_lost=self._on_lost,
            on_failure=self._fail,
        )

    def stop(self) -> None:
        """End the loaders and whoever waits for them. Safe to call twice."""
        self._end(PipelineError("loading was stopped"))
        self.decode.stop()
        if self._ahead is not None and self._ahead.is_alive():
            self._ahead.join()

    def check(self) -> tuple[BadFile, ...]:
        """Decode every file that was not decoded before; as many good ones as fit stay resident.

        Returns all that are bad.
        """
        with self._changed:
            files = np.flatnonzero(~self._known & ~self._coming)
            self._coming[files] = True
            self._wanted = files
        for some in _parts(files):
            with self._changed:
                room = some[: self._table.free]
                slots = np.full(len(some), NO_SLOT, dtype=np.int32)
                slots[: len(room)] = self._table.claim(room)
            self._submit(some, slots)
        self._wait(files)
        with self._changed:
            return tuple(self._bad[number] for number in sorted(self._bad))

    @property
    def known(self) -> int:
        """Files that have been decoded so far, or found to be bad."""
        with self._changed:
            return int(self._known.sum())

    def drop(self, bad: tuple[BadFile, ...]) -> Indices:
        """Take bad files out of the samples; returns the files that are left, int64 (n,)."""
        self._file_of = np.setdiff1d(self._file_of, [b.number for b in bad])
        return self._file_of

    def load(self, samples: Indices) -> None:
        """Make `samples` resident and keep them so until `unload`.

        Raises BadFiles when some cannot be decoded, PipelineError when more samples are loaded at once than there are
        slots.
        """
        files = self._file_of[samples]
        self._raise_bad(files)
        with self._changed:
            try:
                missing, slots = self._table.pin(files, keep=self._coming)
            except ValueError as error:
                raise PipelineError(f"the arena has {self._slot_count} slots: {error}") from error
            self._coming[missing] = True
            self._wanted = np.unique(files)
            self._loaded = np.union1d(self._loaded, files)
        for some in _parts(np.arange(len(missing))):
            self._submit(missing[some], slots[some])
        if self._ahead is not None and self._ahead.ident is None:
            self._ahead.start()
        self._wait(files)
        self._raise_bad(files)

    def unload(self, samples: Indices) -> None:
        with self._changed:
            self._table.unpin(self._file_of[samples])
            self._loaded = np.setdiff1d(self._loaded, self._file_of[samples])
            self._changed.notify_all()

    def slots_of(self, samples: Indices) -> Slots:
        """The arena slots of loaded `samples` (n,), int32 (n,)."""
        return self._table.slots_of(self._file_of[samples])

    @property
    def progress(self) -> tuple[int, int]:
        """Files of the present or the last load, or check, that are there, and all of them."""
        with self._changed:
            return len(self._wanted) - int(self._coming[self._wanted].sum()), len(self._wanted)

    def snapshot(self) -> StageSnapshot:
        return self.decode.snapshot()

    def _decode_ahead(self) -> None:
        """Decode what was not decoded yet while there are slots that no load will lack."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._over is not None or self._room_ahead() > 0)
                    files = self._untried(min(FILES_PER_TASK, self._room_ahead()))
                    if self._over is not None or not len(files):
                        return
                    slots = self._table.claim(files)
                    self._coming[files] = True
                self._submit(files, slots)
        except StageFailure as failure:
            self._fail(failure)

    def _room_ahead(self) -> int:
        """Slots for files that nobody asked for yet. Called with `_changed` held."""
        spare = self._table.free + self._table.spent
        if self._slot_count < len(self._paths):
            # The next load may find none of its files among those that are there.
            spare -= self._at_a_time - len(self._loaded)
        return spare

    def _untried(self, most: int) -> Indices:
        """Files that were not decoded yet, in order. Called with `_changed` held."""
        found: list[int] = []
        while self._next < len(self._known) and len(found) < most:
            if not (self._known[self._next] or self._coming[self._next]):
                found.append(self._next)
            self._next += 1
        return np.array(found, dtype=np.int64)

    def _submit(self, files: Indices, slots: Slots) -> None:
        """One task; waits while the stage is full. Raises StageFailure."""
        self.decode.submit(self._task(DecodeWork(files.astype(np.int32), slots)))

    def _wait(self, files: Indices) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over is not None or not self._coming[files].any())
            if self._over is not None:
                raise self._over

    def _raise_bad(self, files: Indices) -> None:
        with self._changed:
            if not self._bad:
                return
            # What was found ahead of its time ends the run as well, and no later.
            bad = sorted(set(self._bad) & set((self._file_of if self._ahead else files).tolist()))
            if bad:
                raise BadFiles(tuple(self._bad[number] for number in bad))

    def _task(self, work: DecodeWork) -> Task[DecodeWork]:
        return Task(next(self._tickets), len(work.files), work)

    def _on_decoded(self, task: Task[DecodeWork], result: DecodeResult) -> None:
        self._settle(task.body.files, result.bad)

    def _on_lost(self, task: Task[DecodeWork], lost: Lost) -> None:
        blame, again = triage(task.samples, lost)
        if blame is not None:
            file = task.body.files[blame : blame + 1]
            self._settle(file, ((int(file[0]), f"its loader {lost.why}"),))
        for items in again:
            self.decode.put_back(self._task(task.body.only(items)))

    def _settle(self, files: npt.NDArray[np.int32], bad: tuple[tuple[int, str], ...]) -> None:
        """Loaders are done with `files`."""
        self.decode.count_failed(len(bad))
        with self._changed:
            for number, why in bad:
                before = " (it could be read before)" if self._known[number] and number not in self._bad else ""
                self._bad[number] = BadFile(number, self._paths[number], why + before)
            self._table.release(np.array([number for number, _ in bad], dtype=np.int64))
            self._known[files] = True
            self._coming[files] = False
            self._changed.notify_all()

    def _fail(self, failure: StageFailure) -> None:
        self._end(failure)
        self._on_failure(failure)

    def _end(self, why: PipelineError) -> None:
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()


def _parts(items: Indices) -> Iterator[Indices]:
    """As many at a time as a task holds."""
    for begin in range(0, len(items), FILES_PER_TASK):
        yield items[begin : begin + FILES_PER_TASK]
