"""The CUDA executor: fused kernels on tensor cores, the same integers as NumPy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core.arrays import gpu_of, is_torch, on_host
from int4core.backends.base import Pending, Want
from int4core.backends.cuda.lanes import Lane, as_cupy
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork
from int4core.backends.cuda.plan.convolution import Output
from int4core.backends.cuda.plan.ops import ConvOp, LinearOp, PoolOp, StemOp, TopOp, parts
from int4core.cores import usable_cores
from int4core.errors import EngineError
from int4core.layers import Int32Array
from int4core.network import trace_shapes
from int4core.options import CudaOptions

if TYPE_CHECKING:
    from int4core.model import Model

DEPTH = 3
"""Batches under way: one that is computed, one that is copied to the GPU, one that is copied to pinned memory."""

MOST_COPIERS = 8
"""Threads that copy to pinned memory: more do not copy faster than a socket's memory."""


@dataclass(frozen=True)
class _Borrowed:
    """A stream of another library, by CUDA's stream protocol."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


class CudaBackend:
    """One GPU; see DeviceNetwork for the errors.

    A batch that is not full costs as much as a full one.
    """

    name = "cuda"
    depth = DEPTH

    def __init__(self, model: Model, batch_size: int = 16, options: CudaOptions | None = None) -> None:
        self.network = DeviceNetwork(model, options)
        self._pid = os.getpid()
        self.batch_size = batch_size
        self.input_shape = (model.network.conv1.in_channels, *self.network.size)
        self.classes = model.network.classes
        self._copiers = ThreadPoolExecutor(min(MOST_COPIERS, usable_cores()), thread_name_prefix="int4core-copy")
        with self.network.device:
            self._stream = self.network.cupy.cuda.Stream(non_blocking=True)
            self._lanes = [Lane(self.network, batch_size, self._copiers)]

    @property
    def notice(self) -> str:
        """What the engine runs on."""
        return self.network.notice

    @contextmanager
    def placed(self, x: Any) -> Iterator[None]:
        """This GPU; and for what lies on it, the stream that its library computes on."""
        if os.getpid() != self._pid:
            raise EngineError(
                "the engine is of the process that this one was forked from, and a GPU is lost in a fork: make another "
                "one in a process that is started anew (multiprocessing's spawn)"
            )
        number, here = gpu_of(x), self.network.device.id
        if number is None:
            with self.network.device:
                yield
            return
        if number != here:
            raise EngineError(f"input lies on GPU {number}, and the engine on GPU {here}: CudaOptions(device={number})")
        with self.network.device, self._stream_of(x):
            yield

    def begin(self, x: Any, want: Want, k: int = 0) -> Pending:
        """On an idle lane, a new one while there are fewer than `depth`, or the one that began the longest ago."""
        if gpu_of(x) is not None:
            return self._lanes[0].begin_on_device(as_cupy(self.network.cupy, x), want, k)
        if not any(lane.idle for lane in self._lanes) and len(self._lanes) < self.depth:
            self._lanes.append(Lane(self.network, self.batch_size, self._copiers))
        lane = next((lane for lane in self._lanes if lane.idle), self._lanes[0])
        self._lanes.remove(lane)
        self._lanes.append(lane)
        return lane.begin_on_host(on_host(x), want, k)

    def trace(self, x: Any) -> dict[str, Int32Array]:
        """Layer name -> output, int32 NCHW, of the layers whose outputs exist: the last one of every fused operation.

        Those are every block's quantizations, maxpool, avgpool and fc.
        """
        with self.network.device:
            batch = self.network.batch(len(x), keep_all=True)
            batch.input.set(np.ascontiguousarray(on_host(x)), stream=self._stream)
            batch.run(self._stream)
            shapes = trace_shapes(self.network.model.network, self.network.size)
            channels = {layer.name: layer.output.channels for layer in shapes}
            return {
                name: array
                for step in batch.plan.steps
                for op in parts(step.op)
                if not isinstance(op, TopOp)
                for name, array in [self._read(batch, op, channels)]
            }

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        for lane in self._lanes:
            lane.wait()
        self._lanes.clear()
        self._copiers.shutdown()
        self.network.close()

    def _stream_of(self, x: Any) -> Any:
        cuda = self.network.cupy.cuda
        if not is_torch(x):
            return cuda.get_current_stream()
        import torch

        pointer = torch.cuda.current_stream(x.device).cuda_stream
        return cuda.Stream.from_external(_Borrowed(pointer)) if pointer else cuda.Stream.null

    def _read(
        self, batch: DeviceBatch, op: StemOp | ConvOp | PoolOp | LinearOp, channels: dict[str, int]
    ) -> tuple[str, Int32Array]:
        """The operation's output as the NumPy backend gives it, and its layer's name."""
        raw = batch.tensor(op.output.name).get(stream=self._stream)
        if isinstance(op, LinearOp):
            return op.name, raw.view(np.int32).reshape(batch.n, -1)
        if isinstance(op, PoolOp):
            values = raw.reshape(batch.n, 1, 1, -1)
        elif isinstance(op, ConvOp):
            values = raw.reshape(batch.n, op.shape.p, op.shape.q, -1)
        else:
            values = raw.reshape(batch.n, *op.pooled, -1)
        if isinstance(op, StemOp) or (isinstance(op, ConvOp) and op.shape.output == Output.U4):
            values = np.stack((values & 15, values >> 4), -1).reshape(*values.shape[:-1], -1)
        kept = values[..., : channels[op.output.name]]
        return op.output.name, np.ascontiguousarray(kept.transpose(0, 3, 1, 2).astype(np.int32))
