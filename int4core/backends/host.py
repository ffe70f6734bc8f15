"""What the executors for CPUs have in common: arrays in host memory, and answers that are there at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core.arrays import gpu_of, on_host
from int4core.backends.base import Pending, Want, answer
from int4core.cores import usable_cores
from int4core.errors import EngineError
from int4core.layers import Int8Array, Int32Array
from int4core.network import LayerShape, default_input_size, trace_shapes
from int4core.options import HostOptions

if TYPE_CHECKING:
    from int4core.model import Model


class HostBackend:
    """A backend whose subclass computes `_sums`.

    Raises EngineError when the input size does not fit.
    """

    name: str

    depth = 1

    def __init__(self, model: Model, batch_size: int, options: HostOptions) -> None:
        net = model.network
        size = default_input_size(net) if options.input_size is None else options.input_size
        self.batch_size = batch_size
        self.layers: tuple[LayerShape, ...] = trace_shapes(net, size)
        self.input_shape = (net.conv1.in_channels, size[0], size[1])
        self.classes = net.classes
        self.threads = options.threads or usable_cores()
        self._out_scale = net.scale.out_scale

    def placed(self, x: Any) -> contextlib.AbstractContextManager[None]:
        if gpu_of(x) is not None:
            raise EngineError(
                f"input lies on a GPU, and backend {self.name!r} computes on the CPU: copy it, or use 'cuda'"
            )
        return contextlib.nullcontext()

    def begin(self, x: Any, want: Want, k: int = 0) -> Pending:
        """The answer is there when this returns."""
        found = answer(self.accumulators(on_host(x)), self._out_scale, want, k)
        return lambda: found

    def accumulators(self, x: Int8Array) -> Int32Array:
        """int8 (n, 3, H, W) -> int32 (n, classes), before Scale."""
        return self._sums(np.ascontiguousarray(x)) if len(x) else np.empty((0, self.classes), np.int32)

    def _sums(self, x: Int8Array) -> Int32Array:
        """The same of one image or more, C-contiguous."""
        raise NotImplementedError
