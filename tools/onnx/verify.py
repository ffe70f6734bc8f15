"""An ONNX file in ONNX Runtime against the engine: every accumulator, every logit, every class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from int4core.cores import usable_cores
from int4core.engine import Engine
from int4core.layers import Int8Array
from int4core.model import Model
from tools.onnx.errors import OnnxError
from tools.onnx.graph import IMAGES

BATCH = 4


@dataclass(frozen=True)
class Agreement:
    """How many values were compared, all of them equal."""

    images: int
    accumulators: int

    def __str__(self) -> str:
        return (
            f"{self.images} images of random int8: {self.accumulators:,} of {self.accumulators:,} sums equal, "
            "and so are all logits and top1"
        )


def verify(file: Path, model: Model, images: int, seed: int = 0) -> Agreement:
    """Compare `images` random images over the whole range of int8.

    Raises OnnxError when a value differs (the first layer that differs is named), or ONNX Runtime refuses the file.
    """
    session = _session(str(file))
    sums = 0
    with Engine(model, batch_size=BATCH) as engine:
        for x in random_images(engine.input_shape, images, seed):
            theirs = session.run(["accumulators", "logits", "top1"], {IMAGES: x})
            ours = engine.accumulators(x), engine.logits(x), engine.top1(x)
            for name, a, b in zip(("accumulators", "logits", "top1"), ours, theirs, strict=True):
                if a.dtype != b.dtype or not np.array_equal(a, b):
                    where = first_difference(onnx.load(file), engine.trace(x[:1]), x[:1])
                    raise OnnxError(f"{file}: {name} differ in {np.count_nonzero(a != b):,} of {a.size:,}{where}")
            sums += theirs[0].size
    return Agreement(images, sums)


def random_images(shape: tuple[int, int, int], count: int, seed: int) -> Iterator[Int8Array]:
    """Batches of `count` images in all, int8 (n, *shape), every value equally likely, -128 too."""
    random = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        yield random.integers(-128, 128, (n, *shape), np.int8)


def first_difference(model: onnx.ModelProto, trace: dict[str, Any], x: Int8Array) -> str:
    """`; first NAME`, the first layer of `trace` whose value in the graph differs; empty where none does."""
    given = {name for node in model.graph.node for name in node.output}
    names = [name for name in trace if name in given]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = _session(model.SerializeToString()).run(names, {IMAGES: x})
    for name, value in zip(names, values, strict=True):
        if not np.array_equal(trace[name], value.reshape(trace[name].shape)):
            return f"; first in layer {name}"
    return ""


def _session(model: str | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise OnnxError(f"ONNX Runtime refuses the graph: {error}") from None
