"""What a session is made of: the one settings object of a process that classifies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from int4core.options import BackendOptions
from pipeline.device.scheduler import Sizes
from pipeline.jpeg.plan import Sampling
from pipeline.session.loading import JOBS_PER_LOADER
from pipeline.session.waiting import Batching
from pipeline.stages.load import FILES_PER_JOB, SAMPLES_PER_JOB, Preparation
from pipeline.stages.spec import CPU_IN_FLIGHT, records_for


@dataclass(frozen=True)
class SessionSpec:
    """Everything that is decided before the first process starts.

    Attributes:
        model, digest: the model folder, and the digest of the model in it: see `pipeline.stages.spec.EngineSpec`.
        backend, backend_options: see `int4core.Engine`.
        sizes, engines, inflight, h2d, ordered, bus_ids, top: see `pipeline.stages.spec.EngineSpec`.
        input_shape: (3, H, W) of the model.
        preparation: what a loader does with an image (see `pipeline.stages.load`).
        loaders: processes that read and decode.
        slots: samples that the arena holds; 0 takes `slots_for_streaming`.
        hold_s: how long a prepared sample may wait for a batch to fill up.
        busy_at: batches under way, on all engines, with which they are at work: see `session.waiting.Batching`.
        stage_timeout_s: silence after which a worker counts as hung.
        image_timeout_s: the most that one image may take; None sets no limit.
        room: bytes of a slot where files lie in it to be decoded by the GPU; larger ones are decoded by a loader.
        traced: whether every process keeps its spans for a trace.
        memory_remedy: what whoever asked for this session can do where there is no memory for it.
    """

    model: Path
    backend: str
    backend_options: BackendOptions
    sizes: Sizes
    input_shape: tuple[int, int, int]
    preparation: Preparation
    loaders: int
    slots: int = 0
    stage_timeout_s: float = 60.0
    image_timeout_s: float | None = None
    engines: int = 1
    inflight: int = CPU_IN_FLIGHT
    h2d: str = "auto"
    ordered: bool = False
    bus_ids: tuple[str, ...] = ()
    hold_s: float = 0.1
    busy_at: int = 1
    top: int = 0
    room: int = 512 << 10
    traced: bool = False
    digest: str | None = None
    memory_remedy: str = "ask for smaller batches or fewer loaders (--batch_size, --loaders)"

    @property
    def batching(self) -> Batching:
        return Batching(self.sizes.largest, self.hold_s, self.busy_at)

    @property
    def sampling(self) -> Sampling | None:
        """How the GPU makes samples of files; None where loaders do."""
        return Sampling(self.preparation.size, self.preparation.resize) if self.preparation.decode == "gpu" else None

    @property
    def slots_for_streaming(self) -> int:
        """Slots that keep everything busy: every batch that the engines may have, one that fills up, every job that
        the loaders may have, and a batch's worth for what waits behind a slow image."""
        batches = records_for(self.engines, self.inflight) + 2
        most = FILES_PER_JOB if self.preparation.decode == "gpu" else SAMPLES_PER_JOB
        return batches * self.sizes.largest + JOBS_PER_LOADER * self.loaders * most
