"""Files on their way from slots to samples of a batch: copied as they are, decoded on the GPU.

A batch has a stream and device memory of its own for it (`pipeline.jpeg.workspace`), so that files of one batch are
decoded under the network of another. Samples that a loader has made are copied to their places beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from int4core.errors import EngineError
from int4core.preprocess import quantize_table
from pipeline.arrays import Classes, Slots
from pipeline.device.base import Parts
from pipeline.device.transfer import copy_all
from pipeline.errors import PipelineError
from pipeline.jpeg.decoder import BYTES_PER_IMAGE, FEW_IMAGES
from pipeline.jpeg.device import Gpu
from pipeline.jpeg.launches import sources
from pipeline.jpeg.parse import HEADER
from pipeline.jpeg.plan import ALIGNMENT, FEW_LANES, MANY_LANES, NO_ROOM, Plan, Sampling, fitting
from pipeline.jpeg.workspace import FIXED_BYTES, Workspace
from pipeline.memory.arena import Arena


@dataclass
class _UnderWay:
    """Which rows of a batch are files: those that are being decoded, and those for which there was no room."""

    decoded: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    parts: Parts = ()


class Decode:
    """Makes a batch's samples of what lies in its slots. `base` is the arena's address on the host.

    Attributes:
        marker: puts a mark into a stream, where somebody wants to know when copies and kernels ran (`parts`).

    Raises EngineError without the kernels or the memory.
    """

    name = "files"

    def __init__(self, arena: Arena, base: int, device: int, sampling: Sampling) -> None:
        self._arena = arena
        self._base = base
        self._sampling = sampling
        self._gpu = Gpu(device)
        self._gpu.load(sources(sampling))
        table = quantize_table()
        self._table, self._table_memory = self._gpu.allocate(table.nbytes)
        stream = self._gpu.stream()
        self._gpu.upload(self._table, table, stream)
        self._gpu.wait(stream)
        self._workspaces: WeakKeyDictionary[Any, Workspace] = WeakKeyDictionary()
        self._under_way: WeakKeyDictionary[Any, _UnderWay] = WeakKeyDictionary()
        self.marker: Callable[[Any], Any] | None = None

    def prepare(self, batch: Any) -> None:
        """Have the memory for a batch. Raises PipelineError when the GPU has not so much."""
        size = batch.n * (BYTES_PER_IMAGE + FIXED_BYTES) // ALIGNMENT * ALIGNMENT
        try:
            self._workspaces[batch] = Workspace(self._gpu, size, batch.n, self._table)
        except EngineError as error:
            raise PipelineError(f"{error}; choose a smaller --batch_size or --inflight, or --decode cpu") from error

    def __call__(self, slots: Slots, batch: Any, stream: Any) -> None:
        """Enqueue the copies and the decoding; `stream` goes on when the samples are there."""
        spec, cupy = self._arena.spec, self._gpu.cupy
        lengths = self._arena.lengths[slots].astype(np.int64)
        sources = self._base + slots.astype(np.uint64) * np.uint64(spec.slot_bytes)
        targets = batch.input.data.ptr + np.arange(len(slots), dtype=np.uint64) * np.uint64(spec.sample_bytes)
        samples, files = np.flatnonzero(lengths == 0), np.flatnonzero(lengths)
        if len(samples):
            bytes_each = np.full(len(samples), spec.sample_bytes, np.uint64)
            copy_all(cupy, targets[samples], sources[samples], bytes_each, stream)
        under_way = self._under_way[batch] = _UnderWay(files[:0], files[:0])
        if not len(files):
            return
        workspace = self._workspaces[batch]
        headers = self._arena.heads(slots[files], HEADER.itemsize).view(HEADER)[:, 0]
        plan = Plan.of(headers, self._sampling, MANY_LANES if len(slots) <= FEW_IMAGES else FEW_LANES)
        sizes = -(-lengths[files] // ALIGNMENT) * ALIGNMENT
        fits = fitting(plan.bytes_each + sizes, workspace.capacity)
        if not fits.all():  # rarely: a plan of 2,048 images is 3.6 MB to copy
            under_way.left = files[~fits]
            files, sizes, plan = files[fits], sizes[fits], plan.take(fits)
        if not len(files):
            return
        marks: list[tuple[str, Any]] = []

        def passed(what: str) -> None:
            if self.marker is not None:
                marks.append((what, self.marker(workspace.stream)))

        passed("begin")
        places = workspace.places(sizes)
        copy_all(cupy, places, sources[files] + np.uint64(HEADER.itemsize), sizes.astype(np.uint64), workspace.stream)
        passed("files")
        workspace.enqueue(plan, places, targets[files], int(sizes.sum()), launched=passed)
        under_way.decoded = files
        under_way.parts = [(name, begin, end) for (_, begin), (name, end) in pairwise(marks)]
        stream.wait_event(workspace.stream.record())

    def parts(self, batch: Any) -> Parts:
        """The copy of the files, and each kernel, of what is over and not `mark`ed."""
        under_way = self._under_way.get(batch)
        return () if under_way is None else under_way.parts

    def mark(self, batch: Any, classes: Classes) -> None:
        """Once all of the batch is over: give rows that were not decoded well the class -word.

        `word` says what was found (see `pipeline.jpeg.plan.DAMAGE`).
        """
        under_way = self._under_way.pop(batch, None)
        if under_way is None:
            return
        classes[under_way.left] = -NO_ROOM
        if len(under_way.decoded):
            damage = self._workspaces[batch].finish().astype(np.int32)
            hurt = damage != 0
            classes[under_way.decoded[hurt]] = -damage[hurt]
