"""What every engine process is built from, on whatever it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from int4core.options import BackendOptions
from pipeline.device.scheduler import Sizes
from pipeline.jpeg.plan import Sampling
from pipeline.memory.arena import ArenaSpec
from pipeline.memory.exchange import ExchangeSpec

# Batches that may be under way at an engine of the CPU: one that runs, and one ready to follow.
CPU_IN_FLIGHT = 2


@dataclass(frozen=True)
class EngineSpec:
    """How every engine process builds its engine.

    Attributes:
        digest: of that model, which is to be in the folder when a process starts; None: whichever is there.
        sizes: of batches; the largest is the most samples of a task.
        engines: how many processes.
        inflight: batches that one engine has under way, of those that can (CUDA).
        h2d: how samples come to a device (see `pipeline.device.transfer`).
        ordered: whether the networks of batches in flight take turns on the device.
        bus_ids: PCI addresses of the GPUs, one an engine.
        cores: near each of these GPUs, where it makes a difference (see `pipeline.machine.numa`).
        options: the backend's own.
        traced: whether spans are kept for a trace.
        sampling: how files that lie in slots become samples; None where only samples do.
        top: how many of the best classes come with their scores, 0 for the class alone; the exchange has room for them.

    Raises:
        ValueError: the exchange has room for another number.
    """

    arena: ArenaSpec
    exchange: ExchangeSpec
    model: Path
    backend: str
    sizes: Sizes
    engines: int = 1
    inflight: int = CPU_IN_FLIGHT
    h2d: str = "auto"
    ordered: bool = False
    bus_ids: tuple[str, ...] = ()
    cores: tuple[frozenset[int], ...] = ()
    options: BackendOptions | None = None
    traced: bool = False
    top: int = 0
    sampling: Sampling | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.top != self.exchange.top:
            raise ValueError(f"top {self.top} classes, but the exchange has room for {self.exchange.top}")

    @property
    def batch_size(self) -> int:
        return self.sizes.largest


def records_for(engines: int, inflight: int) -> int:
    """Records of an exchange that keep `engines` busy: those in flight, and one more each that waits its turn."""
    return engines * (inflight + 1)
