"""Infer: the engine process reads batches of slots from the arena and answers with classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.engine import Engine
from int4core.model import Model
from pipeline.arena import Arena, ArenaSpec
from pipeline.channels import Task
from pipeline.stages.base import StageFailure
from pipeline.stages.process import ProcessStage

Slots: TypeAlias = npt.NDArray[np.int32]
Classes: TypeAlias = npt.NDArray[np.int32]

# Batches that may wait or run at once: one under way, one ready to follow, one being put together.
BATCHES_IN_FLIGHT = 3


@dataclass(frozen=True)
class EngineSpec:
    """How the engine process builds its engine; `options` are the backend's own (gpu, autoconfig)."""

    arena: ArenaSpec
    model: Path
    backend: str
    batch_size: int
    options: tuple[tuple[str, Any], ...] = ()


class Inferrer:
    """One engine over one arena."""

    def __init__(self, spec: EngineSpec) -> None:
        self._arena = Arena.attach(spec.arena)
        self._engine = Engine(
            Model.load(spec.model), backend=spec.backend, batch_size=spec.batch_size, **dict(spec.options)
        )
        self._note = f"{spec.backend}, batch {spec.batch_size}"
        self._rate = self._warm_up(spec)

    def note(self) -> str:
        return self._note

    def rate(self) -> float:
        return self._rate

    def work(self, body: Slots) -> Classes:
        return self._engine.top1(self._arena.gather(body))

    def close(self) -> None:
        self._engine.close()
        self._arena.close()

    def _warm_up(self, spec: EngineSpec) -> float:
        """Run two batches that are nobody's; samples/s of the second, the first pays for all set-up."""
        shape = (spec.batch_size, *spec.arena.sample_shape)
        batch = np.random.default_rng(0).integers(-127, 128, shape, dtype=np.int8)
        self._engine.top1(batch)
        began = time.perf_counter()
        self._engine.top1(batch)
        return spec.batch_size / (time.perf_counter() - began)


def infer_stage(
    spec: EngineSpec,
    *,
    timeout_s: float,
    on_result: Callable[[Task[Slots], Classes], None],
    on_failure: Callable[[StageFailure], None],
) -> ProcessStage[Slots, Classes]:
    return ProcessStage(
        "infer",
        partial(Inferrer, spec),
        workers=1,
        capacity=BATCHES_IN_FLIGHT * spec.batch_size,
        timeout_s=timeout_s,
        on_result=on_result,
        on_failure=on_failure,
    )
