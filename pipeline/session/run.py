"""One run: the arena, the stages over it, and the order in which they come up and go down."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from int4core.cores import usable_cores
from int4core.options import BackendOptions
from pipeline.device.scheduler import Sizes
from pipeline.machine.numa import cores_near
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.samples.images import ImageRules
from pipeline.samples.library import SampleLibrary
from pipeline.session.serving import Deliver, Serving
from pipeline.session.store import SampleStore
from pipeline.session.waiting import Batching
from pipeline.stages.base import StageFailure
from pipeline.stages.spec import CPU_IN_FLIGHT, EngineSpec, records_for
from pipeline.telemetry.ceilings import Ceilings, total
from pipeline.telemetry.trace import Records, make_tracer


@dataclass(frozen=True)
class RunSpec:
    """What a run is made of.

    Attributes:
        model: the model folder.
        backend, backend_options: see `int4core.Engine`.
        sizes, engines, inflight, h2d, ordered, bus_ids: see `pipeline.stages.spec.EngineSpec`.
        hold_s: see `pipeline.session.waiting.Batching`.
        input_shape: (3, H, W) of the model.
        resize: short side to resize images to before the centre crop, or None for images that are sized.
        rules: which images are taken as samples.
        slots: samples that the arena holds.
        at_a_time, ahead: see `pipeline.session.store.SampleStore`.
        stage_timeout_s: silence after which a worker counts as hung.
        image_timeout_s: the most that one file may take to become a sample.
        traced: whether every process keeps its spans for a trace.
    """

    model: Path
    backend: str
    backend_options: BackendOptions
    sizes: Sizes
    input_shape: tuple[int, int, int]
    library: SampleLibrary
    resize: int | None
    loaders: int
    slots: int
    stage_timeout_s: float
    image_timeout_s: float
    engines: int = 1
    inflight: int = CPU_IN_FLIGHT
    h2d: str = "auto"
    ordered: bool = False
    bus_ids: tuple[str, ...] = ()
    hold_s: float = 0.0
    at_a_time: int = 0
    ahead: bool = False
    traced: bool = False
    rules: ImageRules = field(default_factory=ImageRules)


class Run:
    """Holds everything that has to be given back; `with` gives it back on every way out."""

    def __init__(self, spec: RunSpec, *, deliver: Deliver, on_failure: Callable[[StageFailure], None]) -> None:
        self.spec = spec
        self._tracer = make_tracer("pipeline", spec.traced)
        self._held = ExitStack()
        try:
            self._build(spec, deliver, on_failure)
        except BaseException:
            self._held.close()
            raise

    def _build(self, spec: RunSpec, deliver: Deliver, on_failure: Callable[[StageFailure], None]) -> None:
        arena = self._held.enter_context(Arena.create(spec.slots, spec.input_shape))
        records = records_for(spec.engines, spec.inflight)
        exchange = self._held.enter_context(Exchange.create(records, spec.sizes.largest))
        self.store = SampleStore(
            spec.library,
            arena,
            size=spec.input_shape[1],
            resize=spec.resize,
            loaders=spec.loaders,
            cores=cores_near(spec.bus_ids),
            timeout_s=spec.stage_timeout_s,
            image_timeout_s=spec.image_timeout_s,
            on_failure=on_failure,
            traced=spec.traced,
            rules=spec.rules,
            at_a_time=spec.at_a_time,
            ahead=spec.ahead,
        )
        engine = EngineSpec(
            arena.spec,
            exchange.spec,
            spec.model,
            spec.backend,
            spec.sizes,
            engines=spec.engines,
            inflight=spec.inflight,
            h2d=spec.h2d,
            ordered=spec.ordered,
            bus_ids=spec.bus_ids,
            options=spec.backend_options,
            traced=spec.traced,
        )
        self.serving = Serving(
            self.store,
            exchange,
            engine,
            Batching(spec.sizes.largest, spec.hold_s),
            samples=len(spec.library),
            timeout_s=spec.stage_timeout_s,
            deliver=deliver,
            on_failure=on_failure,
            tracer=self._tracer,
        )
        # Given back in the reverse order: first the processes that compute, last the memory they read.
        self._held.callback(self.serving.stop)
        self._held.callback(self.store.stop)
        self._held.callback(self.serving.infer.stop)

    def start(self) -> None:
        """Bring every stage up, the processes side by side. Raises StageFailure."""
        self.store.decode.launch()
        self.serving.infer.launch()
        self.serving.start()
        self.store.decode.start()
        self.serving.infer.start()

    def traces(self) -> tuple[Records, ...]:
        """The spans of every process of a run that is over. Raises StageFailure."""
        return (self._tracer.to_records(), *self.serving.infer.traces(), *self.store.decode.traces())

    def ceilings(self, rate: float, *, decode_timed: bool, decodes_per_sample: float = 1.0) -> Ceilings:
        """What each part could have done alone in this run, which gave `rate` samples/s.

        The others are as in `Ceilings`.
        """
        infer, decode = self.serving.infer, self.store.decode
        engine, busy = total(r.engine for r in infer.rates), infer.rate_while_busy
        if engine is None and busy is not None:
            engine = busy * infer.workers
        return Ceilings(
            rate=rate,
            decode_per_loader=decode.rate_while_busy,
            decode_timed=decode_timed,
            decodes_per_sample=decodes_per_sample,
            loaders=decode.workers,
            cores=usable_cores(),
            h2d=total(r.h2d for r in infer.rates),
            engine=engine,
            loadgen=self.serving.delivery_rate,
            sample_bytes=math.prod(self.spec.input_shape),
            engines=infer.workers,
        )

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
