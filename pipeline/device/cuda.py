"""A CUDA GPU as the scheduler's device: CuPy's streams and events, the arena pinned and mapped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork
from int4core.errors import EngineError
from pipeline.device.base import Parts
from pipeline.device.decode import Decode
from pipeline.device.transfer import Gather, H2d, Runs, Staged, Transfer
from pipeline.errors import PipelineError
from pipeline.jpeg.plan import Sampling
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange

_PORTABLE, _MAPPED = 1, 2


class CudaDevice:
    """One GPU with a network on it, over one arena and one exchange.

    Attributes:
        transfers: the ways to bring samples to the device that work here, by their names.
        decode: what makes samples of files; None where slots hold samples alone.
        notice: what it runs on, and how its memory is reached.
    """

    def __init__(
        self,
        network: DeviceNetwork,
        arena: Arena,
        exchange: Exchange,
        h2d: H2d = "auto",
        sampling: Sampling | None = None,
    ) -> None:
        """`sampling`: how files in slots become samples, None where there are none.

        Raises PipelineError when the arena cannot be pinned and `h2d` needs it, EngineError from the kernel."""
        self.network = network
        self._cupy = network.cupy
        self._exchange = exchange
        self._held = ExitStack()
        self._down: WeakKeyDictionary[DeviceBatch, Any] = WeakKeyDictionary()
        self._decoding = False
        network.device.use()
        self.notice = network.notice
        self._exchange_base = self._arena_base = 0
        self.decode: Decode | None = None
        try:
            self.transfers = self._make_transfers(arena, exchange, h2d)
            if sampling is not None:
                if not self._exchange_base:
                    raise PipelineError("--decode gpu: files are copied out of pinned memory, and there is none")
                self.decode = Decode(arena, self._arena_base, network.device.id, sampling)
        except BaseException:
            self.close()
            raise
        self._transfer: Transfer = next(iter(self.transfers.values()))

    @property
    def copies_by(self) -> str:
        """The name of the way in which samples come to the device."""
        return self._transfer.name

    def copy_by(self, name: str) -> None:
        """Bring samples to the device in this way from now on. Nothing may be under way."""
        self._transfer = self.transfers[name]

    def start_decoding(self, marker: Callable[[Any], Any] | None = None) -> None:
        """Slots may hold files from now on; rates are measured before, on samples. Nothing may be under way.

        `marker` puts a mark into a stream, where `parts` is to have when files were copied and decoded.
        """
        self._decoding = True
        if self.decode is not None:
            self.decode.marker = marker

    def stream(self) -> Any:
        return self._cupy.cuda.Stream(non_blocking=True)

    def event(self) -> Any:
        return self._cupy.cuda.Event(disable_timing=True)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def batch(self, n: int) -> DeviceBatch:
        try:
            batch = self.network.batch(n, top=self._exchange.spec.top)
        except EngineError as error:
            raise PipelineError(f"{error}; choose a smaller --batch_size than {n}, or a smaller --inflight") from error
        if self.decode is not None:
            self.decode.prepare(batch)
        return batch

    def upload(self, batch: DeviceBatch, record: int, count: int, stream: Any) -> None:
        slots = self._exchange.slots(record, count)
        if self.decode is not None and self._decoding:
            self.decode(slots, batch, stream)
            return
        address = self._exchange_base + slots.ctypes.data - self._exchange.memory.ctypes.data
        self._transfer(slots, address if self._exchange_base else 0, batch, stream)

    def download(self, batch: DeviceBatch, record: int, count: int, stream: Any) -> None:
        runtime = self._cupy.cuda.runtime
        targets = self._exchange.answers(record, count) if self._exchange_base else self._pinned_answers(batch, count)
        for source, target in zip((batch.top1, batch.top_ids, batch.top_scores), targets, strict=False):
            runtime.memcpyAsync(
                target.ctypes.data, source.data.ptr, target.nbytes, runtime.memcpyDeviceToHost, stream.ptr
            )

    def parts(self, batch: DeviceBatch) -> Parts:
        return () if self.decode is None else self.decode.parts(batch)

    def collect(self, batch: DeviceBatch, record: int, count: int) -> None:
        if not self._exchange_base:
            answers = self._pinned_answers(batch, count)
            for place, values in zip(self._exchange.answers(record, count), answers, strict=True):
                place[:] = values
        if self.decode is not None and self._decoding:
            self.decode.mark(batch, self._exchange.classes(record, count))

    def close(self) -> None:
        self._cupy.cuda.runtime.deviceSynchronize()
        self._held.close()

    def _make_transfers(self, arena: Arena, exchange: Exchange, h2d: H2d) -> dict[str, Transfer]:
        if h2d == "staged":
            self.notice += "; samples staged through a pinned buffer, as asked"
            return {"staged": Staged(self._cupy, arena)}
        try:
            self._exchange_base = self._register(exchange.memory)
            base = self._register(arena.memory)
            self._arena_base = arena.memory.ctypes.data
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            why = (
                f"the arena ({arena.spec.total_bytes / 2**20:,.0f} MiB) cannot be pinned for the GPU: {error}; allow "
                "more locked memory (ulimit -l unlimited; docker run --ulimit memlock=-1), or load fewer samples"
            )
            if h2d != "auto":
                raise PipelineError(f"--h2d {h2d}: {why}; or choose --h2d staged") from error
            self._exchange_base = self._arena_base = 0
            self.notice += f"; SLOWER THAN IT COULD BE: {why}"
            return {"staged": Staged(self._cupy, arena)}
        runs = Runs(self._cupy, arena, arena.memory.ctypes.data)
        if h2d == "runs":
            return {"runs": runs}
        gather = Gather.load(self.network, arena, base)
        return {"gather": gather} if h2d == "gather" else {"runs": runs, "gather": gather}

    def _register(self, memory: Any) -> int:
        """Pin and map host memory, uint8 (n,), until `close`; its address on the device."""
        runtime, address = self._cupy.cuda.runtime, memory.ctypes.data
        runtime.hostRegister(address, memory.nbytes, _PORTABLE | _MAPPED)
        self._held.callback(runtime.hostUnregister, address)
        return int(runtime.pointerGetAttributes(address).devicePointer)

    def _pinned_answers(self, batch: DeviceBatch, count: int) -> tuple[npt.NDArray[Any], ...]:
        """What `Exchange.answers` gives for `count` samples, in pinned memory of the batch's own."""
        answers = self._exchange.answers(0, count)
        if batch not in self._down:
            self._down[batch] = self._cupy.cuda.alloc_pinned_memory(4 * batch.n * (1 + 2 * self._exchange.spec.top))
        offsets = itertools.accumulate((part.nbytes for part in answers), initial=0)
        return tuple(
            np.frombuffer(self._down[batch], part.dtype, part.size, offset).reshape(part.shape)
            for part, offset in zip(answers, offsets, strict=False)
        )
