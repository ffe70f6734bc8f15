"""LoadGen's sample library: samples of a session that stay in their slots while LoadGen has them loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.arrays import Indices, Slots
from pipeline.errors import PipelineError
from pipeline.loadgen.residents import Residents
from pipeline.samples.library import SampleLibrary
from pipeline.samples.sources import PathLocator, Source
from pipeline.session.loading import JOBS_PER_LOADER, Loading


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


class Samples:
    """Samples of a library, decoded on demand or ahead of it.

    A file keeps its number for the whole run. Samples, as LoadGen counts them, are the files that are left after
    `drop`, in the same order. Nobody else leases slots of `loading`.

    Args:
        at_a_time: samples that are loaded at a time, at most.
        ahead: whether every sample will be loaded sooner or later. From the first `load` on, files are then decoded
            into slots that no loaded sample needs, whatever else the run does.
    """

    def __init__(self, loading: Loading, library: SampleLibrary, *, at_a_time: int = 0, ahead: bool = False) -> None:
        self._loading = loading
        self._paths = library.paths
        self._at_a_time = at_a_time
        self._file_of: Indices = np.arange(len(library), dtype=np.int64)
        # All below is guarded by this; it is never held in a call of `loading`, whose threads come here.
        self._changed = threading.Condition()
        self._residents = Residents(len(library), loading.core.slots)
        self._known = np.zeros(len(library), dtype=np.bool_)  # decoded before, for better or worse
        self._bad: dict[int, BadFile] = {}
        self._wanted: Indices = np.empty(0, dtype=np.int64)
        self._to_check = 0  # files of a check that nobody has claimed a slot for yet
        self._next = 0  # all files before it were decoded or are coming
        self._over: BaseException | None = None
        self._ahead = threading.Thread(target=self._decode_ahead, name="ahead", daemon=True) if ahead else None

    def stop(self) -> None:
        """End whoever waits for samples. Safe to call twice."""
        self._end(PipelineError("loading was stopped"))

    def check(self) -> tuple[BadFile, ...]:
        """Decode every file that was not decoded before; as many good ones as fit stay resident.

        Returns all that are bad, those that were on their way already among them.
        """
        with self._changed:
            files = np.flatnonzero(~self._known)
            self._wanted = files
            self._to_check = int((~self._residents.coming[files]).sum())
        self._fetch(self._one_by_one(files))
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
            self._wanted = np.unique(files)
            self._residents.load(files)
            missing = self._residents.missing(files)
            try:
                given = self._claim(missing, at_any_cost=True)
            except ValueError as error:
                raise PipelineError(f"the arena has {self._loading.core.slots} slots: {error}") from error
        self._loading.unpin(given)
        self._fetch(iter(missing.tolist()))
        if self._ahead is not None and self._ahead.ident is None:
            self._ahead.start()
        self._wait(files)
        self._raise_bad(files)

    def unload(self, samples: Indices) -> None:
        with self._changed:
            self._residents.unload(self._file_of[samples])
            self._changed.notify_all()

    def slots_of(self, samples: Indices) -> Slots:
        """The slots of loaded `samples` (n,), int32 (n,)."""
        return self._residents.slots_of(self._file_of[samples])

    @property
    def progress(self) -> tuple[int, int]:
        """Files of the present or the last load, or check, that are there, and all of them."""
        with self._changed:
            waiting = self._residents.coming[self._wanted] | ~self._known[self._wanted]
            return len(self._wanted) - int(waiting.sum()), len(self._wanted)

    def _claim(self, files: Indices, *, at_any_cost: bool = False) -> list[int]:
        """`Residents.claim`, with what a check has left to claim kept up to date. Called with `_changed` held."""
        given = self._residents.claim(files, at_any_cost=at_any_cost)
        self._to_check = max(0, self._to_check - int((~self._known[files]).sum()))
        return given

    def _fetch(self, files: Iterator[int]) -> None:
        """Have files decoded, each into a slot that has been claimed by the time it is drawn from `files`."""
        sources = ((Source(str(number), PathLocator(str(self._paths[number]))),) for number in files)
        for outcomes in self._loading.outcomes(sources, ordered=False, pins=True):
            self._take(chain.from_iterable(outcomes))

    def _take(self, outcomes: Iterable[tuple[Source, tuple[int, ...] | None, str | None]]) -> None:
        """Samples with the slots that they lie in, or with errors."""
        given = []
        with self._changed:
            for source, row, error in outcomes:
                number = int(source.key)
                if row is None:
                    self._set_bad(number, str(error))
                else:
                    self._residents.arrive(number, int(row[0]))
                    if self._is_in_the_way(number):
                        given.append(self._residents.release(number))
                self._known[number] = True
            self._changed.notify_all()
        self._loading.unpin(given)

    def _set_bad(self, number: int, why: str) -> None:
        before = " (it could be read before)" if self._known[number] and number not in self._bad else ""
        self._bad[number] = BadFile(number, self._paths[number], why + before)
        self._residents.fail(number)

    def _is_in_the_way(self, number: int) -> bool:
        """Whether a file that was only checked has to go for others that are to be. Called with `_changed` held."""
        if self._residents.loaded[number] or self._to_check <= self._residents.free:
            return False
        spare = min(JOBS_PER_LOADER * self._loading.stage.workers, self._loading.core.slots - 1)
        return self._residents.free + int(self._residents.coming.sum()) < spare

    def _one_by_one(self, files: Indices) -> Iterator[int]:
        """Files to check that nobody else fetches, each as soon as there is a slot for it."""
        for number in files.tolist():
            with self._changed:
                self._changed.wait_for(
                    lambda: self._over is not None or self._is_fetched(number) or self._room_to_check()  # noqa: B023
                )
                if self._over is not None:
                    return
                if self._is_fetched(number):
                    continue
                given = self._claim(np.array([number]), at_any_cost=True)
            self._loading.unpin(given)
            yield number

    def _is_fetched(self, number: int) -> bool:
        """Whether a file was decoded, or is on its way. Called with `_changed` held."""
        return bool(self._known[number] or self._residents.coming[number])

    def _room_to_check(self) -> bool:
        """Whether there is a slot for a file to check: at the cost of another only where none will come free."""
        residents = self._residents
        return residents.free > 0 or (not residents.coming.any() and residents.evictable > 0)

    def _decode_ahead(self) -> None:
        """Decode what was not decoded yet while there are slots that no load will lack."""
        try:
            self._fetch(self._untried())
        except BaseException as error:
            self._end(error)

    def _untried(self) -> Iterator[int]:
        """Files that were not decoded yet, in order, each as soon as there is a slot to spare."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over is not None or self._room_ahead() > 0)
                if self._over is not None:
                    return
                while self._next < len(self._known) and (self._known[self._next] or self._residents.coming[self._next]):
                    self._next += 1
                if self._next == len(self._known):
                    return
                number = self._next
                given = self._claim(np.array([number]))
            self._loading.unpin(given)
            yield number

    def _room_ahead(self) -> int:
        """Slots for files that nobody asked for yet. Called with `_changed` held."""
        spare = self._residents.free + self._residents.spent
        if self._loading.core.slots < len(self._paths):
            # The next load may find none of its files among those that are there.
            spare -= self._at_a_time - int(self._residents.loaded.sum())
        return spare

    def _wait(self, files: Indices) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over is not None or not self._residents.coming[files].any())
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

    def _end(self, why: BaseException) -> None:
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()
