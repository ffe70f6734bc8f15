"""The CUDA executor: fused kernels on tensor cores, the same integers as NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core.backends.cuda.families.head import TopK
from int4core.backends.cuda.jit.launch import Launch
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork, top_parts
from int4core.backends.cuda.plan.convolution import Output
from int4core.backends.cuda.plan.ops import ConvOp, LinearOp, PoolOp, StemOp, TopOp
from int4core.layers import Float32Array, Int8Array, Int32Array, Pair
from int4core.network import trace_shapes
from int4core.tuning.autoconfig import Autoconfig

if TYPE_CHECKING:
    from int4core.model import Model


class CudaBackend:
    """One GPU, one stream; see DeviceNetwork for the options and errors.

    A batch that is not full costs as much as a full one.
    """

    name = "cuda"

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 16,
        gpu: str | None = None,
        autoconfig: Autoconfig | None = None,
        input_size: Pair | None = None,
        device: int | None = None,
        strict: bool = False,
    ) -> None:
        self.network = DeviceNetwork(
            model, gpu=gpu, autoconfig=autoconfig, input_size=input_size, device=device, strict=strict
        )
        self.batch_size = batch_size
        self.input_shape = (model.network.conv1.in_channels, *self.network.size)
        self.classes = model.network.classes
        with self.network.device:
            self._stream = self.network.cupy.cuda.Stream(non_blocking=True)
            self._batch: DeviceBatch | None = self.network.batch(batch_size)
        self._tops: dict[int, tuple[Launch, Any, Any, Any]] = {}

    @property
    def notice(self) -> str:
        """What the engine runs on."""
        return self.network.notice

    @property
    def notices(self) -> tuple[str, ...]:
        """Kernel numbers that do not fit their layers; see DeviceNetwork."""
        return self.network.notices

    def accumulators(self, x: Int8Array) -> Int32Array:
        """int8 (n, 3, H, W) -> int32 (n, classes), before Scale."""
        with self.network.device:
            batch = self._run(self._batch, x)
            sums: Int32Array = batch.sums[: len(x)].get(stream=self._stream)
            return sums

    def top1(self, x: Int8Array) -> Int32Array | None:
        """int32 (n,): the classes, found on the device."""
        with self.network.device:
            batch = self._run(self._batch, x)
            classes: Int32Array = batch.top1[: len(x)].get(stream=self._stream)
            return classes

    def top_k(self, x: Int8Array, k: int) -> tuple[Int32Array, Float32Array] | None:
        """int32 (n, k) and float32 (n, k): the best classes and their scores, found on the device."""
        with self.network.device:
            batch = self._run(self._batch, x)
            launch, _, ids, scores = self._top(batch, k)
            with self._stream:
                launch()
            return ids[: len(x)].get(stream=self._stream), scores[: len(x)].get(stream=self._stream)

    def _top(self, batch: DeviceBatch, k: int) -> tuple[Launch, Any, Any, Any]:
        """The kernel that finds the best `k` in the batch's sums, and the parts of what it writes."""
        if k not in self._tops:
            network = self.network
            op = batch.plan.steps[-1].op
            assert isinstance(op, TopOp)
            kernel = TopK(replace(op, k=k))
            memory = network.cupy.empty(kernel.op.output.bytes, np.uint8)
            (launch,) = network.launches((kernel,), {**batch.addresses, op.target: memory.data.ptr})
            # What comes before it on the stream is a graph, which ends as a whole.
            self._tops[k] = (replace(launch, overlap=False), *top_parts(memory, batch.n))
        return self._tops[k]

    def trace(self, x: Int8Array) -> dict[str, Int32Array]:
        """Layer name -> output, int32 NCHW, of the layers whose outputs exist: the last one of every fused operation.

        Those are quantize1 and quantize2 of every block, quantize3, maxpool, avgpool and fc.
        """
        with self.network.device:
            batch = self._run(self.network.batch(len(x), keep_all=True), x)
            shapes = trace_shapes(self.network.model.network, self.network.size)
            channels = {layer.name: layer.output.channels for layer in shapes}
            return {
                name: array
                for step in batch.plan.steps
                if not isinstance(step.op, TopOp)
                for name, array in [self._read(batch, step.op, channels)]
            }

    def close(self) -> None:
        self._batch = None
        self._tops.clear()
        self.network.close()

    def _run(self, batch: DeviceBatch | None, x: Int8Array) -> DeviceBatch:
        assert batch is not None, "the backend is closed"
        batch.input[: len(x)].set(x, stream=self._stream)
        batch.run(self._stream)
        return batch

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
