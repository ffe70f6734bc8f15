"""Load: processes that read sources and leave int8 samples in slots of the arena."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.preprocess import PILLOW_BYTES_PER_PIXEL, memory_to_resize
from pipeline.errors import ImageError
from pipeline.jpeg.parse import HEADER, Refused, parse, sides, warm_up
from pipeline.machine.numa import pin, whereabouts
from pipeline.memory.arena import Arena, ArenaSpec
from pipeline.memory.segment import Segment
from pipeline.samples.images import ImageRules
from pipeline.samples.preprocess import Preprocessor
from pipeline.samples.reader import NO_MEMORY, Reader
from pipeline.samples.remote import is_url
from pipeline.samples.sources import Locator, PathLocator, RangeLocator
from pipeline.samples.tensors import read_tensor_into
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Rates, Task
from pipeline.stages.confined import NativeOutput, limit_memory
from pipeline.stages.process import OnLost, ProcessStage
from pipeline.stages.worker import serve_items
from pipeline.telemetry.trace import make_tracer

Kind: TypeAlias = Literal["images", "tensors"]
Decode: TypeAlias = Literal["cpu", "gpu"]

BY_GPU = "gpu"

# Sources of a job, at most: enough to make a message cheap, few enough to share out evenly.
SAMPLES_PER_JOB = 16
FILES_PER_JOB = 128
FEWEST_FILES_PER_JOB = 16

# What a loader may allocate besides what a single image takes.
SPARE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class SlotLocator:
    """The image file's bytes, which lie where its sample will: in the slot, from its beginning on."""

    length: int


@dataclass(frozen=True, slots=True)
class SegmentLocator:
    """The image file's bytes, in a segment of shared memory."""

    path: str
    length: int


Placed: TypeAlias = "Locator | SlotLocator | SegmentLocator"


@dataclass(frozen=True)
class LoadWork:
    """Where the images are, and the slots that their samples go to."""

    locators: Sequence[Placed]
    slots: npt.NDArray[np.int32]
    whole: frozenset[int] = frozenset()
    """Which of them, 0 on, must become samples here, though files go to the GPU otherwise."""


@dataclass(frozen=True)
class LoadResult:
    """What became of the work.

    Attributes:
        bad: the places in it that became no sample, each with its reason.
        ways: how many files went which way, where they may go to the GPU: BY_GPU, or why a loader decoded them.
        left_bytes: of the files that were left for the GPU.
    """

    bad: tuple[tuple[int, str], ...]
    ways: tuple[tuple[str, int], ...] = ()
    left_bytes: int = 0


@dataclass(frozen=True)
class Preparation:
    """What a loader does with a source.

    Attributes:
        kind: `images`, or `tensors` that were prepared before (.npy).
        size: side of the square sample, in pixels.
        resize: what the short side is resized to before the centre crop, or None for images that are sized.
        rules: which images are taken.
        decode: where: by the loader, or by the GPU where it can; files then lie in slots as they are.
        compiled: whether what loaders decode is resized by what Numba compiles, to the same samples.
    """

    kind: Kind
    size: int
    resize: int | None
    rules: ImageRules = field(default_factory=ImageRules)
    decode: Decode = "cpu"
    compiled: bool = False


class Loader:
    """Decodes images, or reads prepared tensors, into slots.

    What C libraries print about a file becomes a part of the reason why it is bad.
    """

    def __init__(
        self,
        arena: ArenaSpec,
        preparation: Preparation,
        cores: tuple[frozenset[int], ...] = (),
        traced: bool = False,
        number: int = 0,
    ) -> None:
        pin(cores, number)
        self._arena = Arena.attach(arena)
        self._preparation = preparation
        self._preprocessor = Preprocessor(
            preparation.size, preparation.resize, preparation.rules, compiled=preparation.compiled
        )
        if preparation.decode == "gpu":
            warm_up()
        self._reader = Reader(preparation.rules.max_bytes)
        self._printed = NativeOutput()
        self.tracer = make_tracer(f"loader {number}{whereabouts()}", traced)

    def note(self) -> str:
        return f"{self._preparation.kind}, resized by Numba" if self._preprocessor.compiled else self._preparation.kind

    def rates(self) -> Rates:
        return Rates()

    def work(self, task: Task[LoadWork], begin: Callable[[int], None]) -> LoadResult:
        bad, left_bytes = [], 0
        ways: Counter[str] = Counter()
        whole = task.body.whole
        with self.tracer.span("decode", files=task.samples):
            for place, (locator, slot) in enumerate(zip(task.body.locators, task.body.slots.tolist(), strict=True)):
                begin(place)
                self._arena.map_slot(slot)
                try:
                    if self._preparation.decode == "gpu" and place not in whole:
                        ways[self._leave(locator, slot)] += 1
                        left_bytes += int(self._arena.lengths[slot])
                    else:
                        self._load(locator, slot)
                        self._arena.lengths[slot] = 0
                except ImageError as error:
                    printed = self._printed.take()
                    bad.append((place, f"{error.why} ({printed})" if printed else error.why))
                else:
                    self._printed.drop()
        return LoadResult(tuple(bad), tuple(ways.items()), left_bytes)

    def close(self) -> None:
        self._reader.close()
        self._printed.close()
        self._arena.close()

    def _leave(self, locator: Placed, slot: int) -> str:
        """Leave the file in its slot for the GPU to decode, behind its header, or decode it here: BY_GPU, or why."""
        raw = memoryview(self._arena.raw(slot))  # type: ignore[arg-type]
        room = raw[HEADER.itemsize :]
        if isinstance(locator, PathLocator | RangeLocator):
            data = self._reader.read_into(locator, room)
        else:
            data = self._bytes_of(locator, slot)
        try:
            header = parse(data)
            reason = self._against(header, len(data))
        except Refused as refused:
            header, reason = b"", str(refused)
        if not reason and len(data) > len(room):
            reason = "more bytes than a slot holds"
        if reason:
            # Where a view of the slot would be, the sample is going to be.
            self._preprocessor.decode_bytes(bytes(data), "image", self._arena.sample(slot))
            self._arena.lengths[slot] = 0
            return reason
        raw[: HEADER.itemsize] = header
        if not isinstance(data, memoryview):
            room[: len(data)] = data
        self._arena.lengths[slot] = len(data)
        return BY_GPU

    def _against(self, header: bytes, size: int) -> str:
        """What the rules may have against it: Pillow's side decides, and says it. Empty when nothing."""
        width, height = sides(header)
        side, resize, rules = self._preparation.size, self._preparation.resize, self._preparation.rules
        if width * height > rules.max_pixels or size > rules.max_bytes:
            return "too large"
        if resize is None:
            return "smaller than a sample" if min(width, height) < side else ""
        # Nearly all are far from it, and closer reckoning is a tenth of a file's time.
        longest, shortest = max(width, height), min(width, height)
        at_most = PILLOW_BYTES_PER_PIXEL * (resize * longest // shortest + 1) * max(longest, side)
        if at_most <= rules.max_memory or memory_to_resize(width, height, resize, side) <= rules.max_memory:
            return ""
        return "too thin"

    def _load(self, locator: Placed, slot: int) -> None:
        out = self._arena.sample(slot)
        if self._preparation.kind == "tensors":
            if not isinstance(locator, PathLocator):
                raise ImageError("tensor", "a prepared tensor is a file of its own")
            read_tensor_into(locator.path, out, self._preparation.rules.max_bytes)
            return
        if isinstance(locator, PathLocator) and not is_url(locator.path):
            # Read by the decoder as it goes: not all of a file need be in memory.
            self._preprocessor.decode_into(locator.path, out)
        else:
            self._preprocessor.decode_bytes(self._bytes_of(locator, slot), "image", out)

    def _bytes_of(self, locator: Placed, slot: int) -> bytes:
        if isinstance(locator, SlotLocator):
            return self._arena.raw(slot)[: locator.length].tobytes()
        if isinstance(locator, SegmentLocator):
            return self._bytes_in(locator)
        return self._reader.read(locator)

    def _bytes_in(self, locator: SegmentLocator) -> bytes:
        """What a caller has at hand may be of any size: too much of it is this source's error, not the loader's end."""
        most = self._preparation.rules.max_bytes
        if locator.length > most:
            raise ImageError("bytes", f"{locator.length} bytes are more than --max-image-bytes {most}")
        segment = Segment.attach(locator.path, locator.length)
        try:
            return segment.bytes.tobytes()
        except MemoryError as error:
            raise ImageError("bytes", NO_MEMORY) from error
        finally:
            segment.close()


def confined_loader(
    arena: ArenaSpec, preparation: Preparation, cores: tuple[frozenset[int], ...], traced: bool, number: int
) -> Loader:
    """A loader whose process fails to allocate what the rules do not allow, whatever a file's header hides."""
    loader = Loader(arena, preparation, cores, traced, number)
    limit_memory(preparation.rules.max_memory + SPARE_BYTES)
    return loader


def load_stage(
    arena: ArenaSpec,
    preparation: Preparation,
    *,
    loaders: int,
    capacity: int,
    timeout_s: float,
    image_timeout_s: float | None,
    on_result: Callable[[Task[LoadWork], LoadResult], None],
    on_lost: OnLost[LoadWork],
    on_failure: Callable[[StageFailure], None],
    cores: tuple[frozenset[int], ...] = (),
    traced: bool = False,
) -> ProcessStage[LoadWork, LoadResult]:
    """The stage over `loaders` processes; `capacity` in samples. A loader that is lost is replaced.

    `cores` are the cores near each GPU (see `pipeline.machine.numa`); loaders are spread over them in turn.
    """
    return ProcessStage(
        "decode",
        partial(confined_loader, arena, preparation, cores, traced),
        workers=loaders,
        capacity=capacity,
        timeout_s=timeout_s,
        on_result=on_result,
        on_failure=on_failure,
        serve=serve_items,
        on_lost=on_lost,
        item_timeout_s=image_timeout_s,
    )
