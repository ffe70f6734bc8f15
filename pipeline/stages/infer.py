"""Infer: engine processes read batches of slots from the arena and answer through the exchange: with classes, or with
the best few and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.engine import Engine
from int4core.layers import Int8Array
from pipeline.errors import PipelineError
from pipeline.machine.numa import whereabouts
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Rates, Task
from pipeline.stages.model import load_model
from pipeline.stages.notices import engine_warnings
from pipeline.stages.process import ProcessStage
from pipeline.stages.spec import EngineSpec
from pipeline.stages.worker import serve, serve_overlapped
from pipeline.telemetry.trace import make_tracer

InferStage: TypeAlias = ProcessStage[int, None]


# The CPU's rate hardly grows with larger batches, which take it minutes: silence, while the run starts.
WARM_UP_SAMPLES = 16


class Inferrer:
    """An engine over the arena, a batch at a time."""

    def __init__(self, spec: EngineSpec, number: int = 0) -> None:
        if spec.sampling is not None:
            raise PipelineError("--decode gpu: the CPU's engine takes samples alone; choose --decode cpu")
        self._arena = Arena.attach(spec.arena)
        self._exchange = Exchange.attach(spec.exchange)
        with engine_warnings() as warnings:
            model = load_model(spec.model, spec.digest)
            self._engine = Engine(model, backend=spec.backend, batch_size=spec.batch_size, options=spec.options)
        self._notices = tuple(warnings.lines)
        self._top = spec.top
        of = f", engine {number + 1} of {spec.engines}" if spec.engines > 1 else ""
        self._note = f"{spec.backend}, batch {spec.batch_size}{of}"
        self._rates = Rates(expected=self._warm_up(spec))
        self.tracer = make_tracer(f"engine {number}{whereabouts()}", spec.traced)

    def note(self) -> str:
        return self._note

    def notices(self) -> tuple[str, ...]:
        return self._notices

    def rates(self) -> Rates:
        return self._rates

    def work(self, task: Task[int]) -> None:
        slots = self._exchange.slots(task.body, task.samples)
        with self.tracer.span("network", ticket=task.ticket, samples=task.samples):
            answers = self._answers(self._arena.gather(slots))
            for place, values in zip(self._exchange.answers(task.body, task.samples), answers, strict=True):
                place[:] = values

    def close(self) -> None:
        self._engine.close()
        self._exchange.close()
        self._arena.close()

    def _answers(self, x: Int8Array) -> tuple[npt.NDArray[Any], ...]:
        """What `Exchange.answers` has room for, of int8 (n, 3, H, W)."""
        if not self._top:
            return (self._engine.top1(x),)
        ids, scores = self._engine.top_k(x, self._top)
        return ids[:, 0], ids, scores

    def _warm_up(self, spec: EngineSpec) -> float:
        """Run two batches that are nobody's; samples/s of the second, the first pays for all set-up."""
        samples = min(spec.batch_size, WARM_UP_SAMPLES)
        shape = (samples, *spec.arena.sample_shape)
        batch = np.random.default_rng(0).integers(-127, 128, shape, dtype=np.int8)
        self._answers(batch)
        began = time.perf_counter()
        self._answers(batch)
        return samples / (time.perf_counter() - began)


def infer_stage(
    spec: EngineSpec,
    *,
    timeout_s: float,
    on_result: Callable[[Task[int], None], None],
    on_failure: Callable[[StageFailure], None],
    on_room: Callable[[], None] | None = None,
) -> InferStage:
    """The stage over `spec.engines` processes; a task's body is the number of a record of the exchange."""
    overlapped = spec.backend == "cuda"
    make: Callable[[int], Any]
    if overlapped:
        # Imported here and again in the process itself: on the CPU nothing of CUDA is needed.
        from pipeline.stages.gpu import DeviceInferrer

        make = partial(DeviceInferrer, spec)
    else:
        make = partial(Inferrer, spec)
    return ProcessStage(
        "infer",
        make,
        workers=spec.engines,
        # Records are what runs out first: one is free again a moment before its task counts as finished.
        capacity=(spec.exchange.records + 1) * spec.batch_size,
        timeout_s=timeout_s,
        on_result=on_result,
        on_failure=on_failure,
        on_room=on_room,
        depth=spec.inflight + 1,
        serve=serve_overlapped if overlapped else serve,
    )


def engine_notes(stage: InferStage) -> list[dict[str, Any]]:
    """What each engine process ran on and how much it did, for a summary."""
    return [{"note": note, "samples": samples} for note, samples in zip(stage.notes, stage.done_by_worker, strict=True)]
