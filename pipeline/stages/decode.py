"""Decode: loader processes turn files into int8 samples, straight into the arena."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ImageError
from pipeline.machine.numa import pin
from pipeline.memory.arena import Arena, ArenaSpec
from pipeline.samples.images import ImageRules
from pipeline.samples.preprocess import Preprocessor
from pipeline.samples.tensors import read_tensor_into
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Rates, Task
from pipeline.stages.confined import NativeOutput, limit_memory
from pipeline.stages.lost import Items
from pipeline.stages.process import OnLost, ProcessStage
from pipeline.stages.worker import serve_items
from pipeline.telemetry.trace import make_tracer

# Files a loader takes at a time: enough to make a message cheap, few enough to share out evenly.
FILES_PER_TASK = 8
NO_SLOT = -1
# What a loader may allocate besides what a single image takes.
SPARE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class DecodeWork:
    """Files (numbers into the loader's list, int32 (n,)) and the slots they go to, int32 (n,).

    A file whose slot is NO_SLOT is decoded and thrown away: a check that it can be.
    """

    files: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]

    def only(self, items: Items) -> DecodeWork:
        """The files at these places in it."""
        chosen = list(items)
        return DecodeWork(self.files[chosen], self.slots[chosen])


@dataclass(frozen=True)
class DecodeResult:
    """The files that could not be decoded, each with its reason."""

    bad: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class LoaderSpec:
    """What every loader needs to know. `kind` is `images` or `tensors`; `resize` None: already sized.

    `cores` are the cores near each GPU of the run (see `pipeline.machine.numa`); loaders are spread over them in
    turn. `traced` keeps spans for a trace. `rules` say which files are taken.
    """

    arena: ArenaSpec
    paths: tuple[Path, ...]
    kind: str
    size: int
    resize: int | None
    cores: tuple[frozenset[int], ...] = ()
    traced: bool = False
    rules: ImageRules = field(default_factory=ImageRules)


class Loader:
    """Decodes images, or reads prepared tensors, into slots.

    What C libraries print about a file becomes a part of the reason why it is bad.
    """

    def __init__(self, spec: LoaderSpec, number: int = 0) -> None:
        self._spec = spec
        pin(spec.cores, number)
        self._arena = Arena.attach(spec.arena)
        self._scratch = np.empty(spec.arena.sample_shape, dtype=np.int8)
        self._preprocessor = Preprocessor(size=spec.size, resize=spec.resize, rules=spec.rules)
        self._printed = NativeOutput()
        self.tracer = make_tracer(f"loader {number}", spec.traced)

    def note(self) -> str:
        return self._spec.kind

    def rates(self) -> Rates:
        return Rates()

    def work(self, task: Task[DecodeWork], begin: Callable[[int], None]) -> DecodeResult:
        with self.tracer.span("decode", files=task.samples):
            return self._decode(task.body, begin)

    def _decode(self, body: DecodeWork, begin: Callable[[int], None]) -> DecodeResult:
        bad = []
        for place, (file, slot) in enumerate(zip(body.files.tolist(), body.slots.tolist(), strict=True)):
            begin(place)
            out = self._scratch if slot == NO_SLOT else self._arena.sample(slot)
            try:
                self._read(self._spec.paths[file], out)
            except ImageError as error:
                printed = self._printed.take()
                bad.append((file, f"{error.why} ({printed})" if printed else error.why))
            else:
                self._printed.drop()
        return DecodeResult(tuple(bad))

    def close(self) -> None:
        self._printed.close()
        self._arena.close()

    def _read(self, path: Path, out: npt.NDArray[np.int8]) -> None:
        if self._spec.kind == "tensors":
            read_tensor_into(path, out, self._spec.rules.max_bytes)
        else:
            self._preprocessor.decode_into(path, out)


def confined_loader(spec: LoaderSpec, number: int) -> Loader:
    """A loader whose process fails to allocate what `rules` do not allow, whatever a file's header hides."""
    loader = Loader(spec, number)
    limit_memory(spec.rules.max_memory + SPARE_BYTES)
    return loader


def decode_stage(
    spec: LoaderSpec,
    *,
    loaders: int,
    timeout_s: float,
    image_timeout_s: float,
    on_result: Callable[[Task[DecodeWork], DecodeResult], None],
    on_lost: OnLost[DecodeWork],
    on_failure: Callable[[StageFailure], None],
) -> ProcessStage[DecodeWork, DecodeResult]:
    """The stage over `loaders` processes; one that is lost, or takes longer than its time over a file, is replaced."""
    return ProcessStage(
        "decode",
        partial(confined_loader, spec),
        workers=loaders,
        capacity=4 * loaders * FILES_PER_TASK,
        timeout_s=timeout_s,
        on_result=on_result,
        on_failure=on_failure,
        serve=serve_items,
        on_lost=on_lost,
        item_timeout_s=image_timeout_s,
    )
