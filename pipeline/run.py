"""One run: the arena, the stages over it, and the order in which they come up and go down."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.arena import Arena
from pipeline.library import SampleLibrary
from pipeline.serving import Deliver, Serving
from pipeline.stages.base import StageFailure
from pipeline.stages.infer import EngineSpec
from pipeline.store import SampleStore


@dataclass(frozen=True)
class RunSpec:
    """What a run is made of.

    Attributes:
        model: the model folder.
        backend, backend_options: see `int4core.Engine`.
        input_shape: (3, H, W) of the model.
        resize: short side to resize images to before the centre crop, or None for images that are sized.
        slots: samples that may be loaded at a time.
        stage_timeout_s: silence after which a worker counts as hung.
    """

    model: Path
    backend: str
    backend_options: tuple[tuple[str, Any], ...]
    batch_size: int
    input_shape: tuple[int, int, int]
    library: SampleLibrary
    resize: int | None
    loaders: int
    slots: int
    stage_timeout_s: float


class Run:
    """Holds everything that has to be given back; `with` gives it back on every way out."""

    def __init__(
        self, spec: RunSpec, *, deliver: Deliver, on_failure: Callable[[StageFailure], None]
    ) -> None:
        self._held = ExitStack()
        arena = self._held.enter_context(Arena.create(spec.slots, spec.input_shape))
        self.store = SampleStore(
            spec.library,
            arena,
            size=spec.input_shape[1],
            resize=spec.resize,
            loaders=spec.loaders,
            timeout_s=spec.stage_timeout_s,
            on_failure=on_failure,
        )
        self.serving = Serving(
            self.store,
            EngineSpec(arena.spec, spec.model, spec.backend, spec.batch_size, spec.backend_options),
            samples=len(spec.library),
            timeout_s=spec.stage_timeout_s,
            deliver=deliver,
            on_failure=on_failure,
        )
        # Given back in the reverse order: first the process that computes, last the memory it reads.
        self._held.callback(self.serving.complete.stop)
        self._held.callback(self.store.decode.stop)
        self._held.callback(self.serving.infer.stop)

    def start(self) -> None:
        """Bring every stage up, the processes side by side. Raises StageFailure."""
        self.store.decode.launch()
        self.serving.infer.launch()
        self.serving.complete.start()
        self.store.decode.start()
        self.serving.infer.start()

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
