"""Time every configuration of the Hopper convolutions on the shapes of ResNet-50.

    python -m benchmarks.sm90_kernels --batch 1024 --layers l3c3,l1c2

A line a configuration: microseconds (median of five runs of a dozen launches over rotating buffers larger
than the L2), TOPS, GB/s of the bytes that must move, and the share of the floor: the larger of operations
over --peak-tops and bytes over --bandwidth. Every configuration must write the same bytes as the first;
that those are right is the business of tests/kernels/test_sm90_conv.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from int4core.backends.cuda.nvrtc import compile_kernel, find_nvrtc
from int4core.backends.cuda.sm90 import CONFIGS, Convolution, Output, Plan, Residual, Source
from int4core.backends.cuda.sm90_layout import (
    Rescale,
    arrange_weights,
    channel_constants,
    join_weights,
    residual_constants,
)
from int4core.backends.cuda.sm90_rows import RowsPlan
from int4core.errors import EngineError

ROTATE_BYTES = 200_000_000
LAUNCHES = 12
RUNS = 5
ROWS = ((8, 3), (8, 4), (4, 2), (4, 3))

BinaryKey: TypeAlias = tuple[type, tuple[tuple[str, int], ...]]

SOURCES: dict[type, tuple[str, str]] = {
    Plan: ("sm90_conv_u4s8.cu", "conv_u4s8"),
    RowsPlan: ("sm90_conv3x3_rows_u4s8.cu", "conv3x3_rows_u4s8"),
}
"""Each kind of plan: its file of int4core/kernels, and its function."""


@dataclass(frozen=True)
class Layer:
    """A shape of the network, and how often it occurs."""

    name: str
    count: int
    conv: Convolution


def resnet50(n: int) -> Iterator[Layer]:
    """Every convolution of ResNet-50 but the stem; a block's downsample is part of its conv3."""
    channels, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, out, stride = 64 << stage, 256 << stage, 1 if stage == 0 else 2
        after, name = size // stride, f"l{stage + 1}"
        source = Source(size, size, channels, stride)
        joined = Convolution(
            n, after, after, inner, out, 1, 1, 0, residual=Residual.CONVOLUTION, source=source
        )
        yield Layer(f"{name}c1_0", 1, Convolution(n, size, size, channels, inner, 1, 1, 0))
        yield Layer(f"{name}c1", blocks - 1, Convolution(n, after, after, out, inner, 1, 1, 0))
        if stage:
            yield Layer(f"{name}c2_0", 1, Convolution(n, size, size, inner, inner, 3, stride, 1))
        same = Convolution(n, after, after, inner, inner, 3, 1, 1)
        yield Layer(f"{name}c2", blocks - (stage > 0), same)
        kept = Convolution(n, after, after, inner, out, 1, 1, 0, residual=Residual.U4)
        yield Layer(f"{name}c3", blocks - 1, kept)
        yield Layer(f"{name}c3_0", 1, joined)
        channels, size = out, after


@dataclass(frozen=True)
class Buffers:
    """One set of device tensors."""

    source: Any
    residual: Any
    output: Any


class Bench:
    """One layer: its weights, constants and rotating buffers, shared by all configurations."""

    def __init__(self, cupy: Any, conv: Convolution) -> None:
        self.cupy, self.conv = cupy, conv
        rng = np.random.default_rng(1)
        k = conv.k
        self.weight = rng.integers(-7, 8, (k, conv.c, conv.taps, conv.taps)).astype(np.int8)
        self.bias = rng.integers(-3000, 3000, k).astype(np.int16)
        self.rescale = Rescale(rng.integers(20, 600, k).astype(np.uint16), 16)
        self.kept = Rescale(rng.integers(0, 4000, k).astype(np.uint16), 1)
        if conv.source:
            self.source_weight = rng.integers(-7, 8, (k, conv.source.c, 1, 1)).astype(np.int8)
            self.down = Rescale(np.full(k, 3641, np.uint16), 16)
            self.up = Rescale(rng.integers(0, 30000, k).astype(np.uint16), 4)
        sets = max(2, min(6, ROTATE_BYTES // conv.activation_bytes + 1))
        self.sets = [self.buffers() for _ in range(sets)]
        self.first: Any = None

    def buffers(self) -> Buffers:
        conv, random = self.conv, self.cupy.random
        shape: tuple[int, ...] = (0,)
        if conv.residual == Residual.U4:
            shape = (conv.n, conv.p, conv.q, conv.k // 2)
        if conv.source:
            shape = (conv.n, conv.source.h, conv.source.w, conv.source.c // 2)
        width = conv.k // (2 if conv.output == Output.U4 else 1)
        return Buffers(
            random.randint(0, 256, (conv.n, conv.h, conv.w, conv.c // 2), np.uint8),
            random.randint(0, 256, shape, np.uint8),
            self.cupy.empty((conv.n, conv.p, conv.q, width), np.uint8),
        )

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        return self.cupy.asarray(array.view(np.uint8).ravel())

    def conv_launch(self, plan: Plan, kernel: Any) -> Callable[[int], None]:
        conv, tile_n = self.conv, plan.config.tile_n
        weights = arrange_weights(self.weight, tile_n, conv.k_bytes)
        kept = self.kept if conv.residual == Residual.U4 else None
        channels = channel_constants(self.bias, self.rescale, tile_n, kept, conv.source is not None)
        residual = channels
        if conv.source:
            weights = join_weights(weights, arrange_weights(self.source_weight, tile_n, conv.k_bytes))
            residual = residual_constants(self.bias, self.down, self.up, tile_n)
        device = [self.upload(a) for a in (weights, channels, residual)]
        shape = plan.shape_argument()
        arguments = [
            (*plan.tensor_maps(s.source.data.ptr, s.residual.data.ptr), *device, s.output, shape)
            for s in self.sets
        ]
        return self.launcher(kernel, plan, plan.config.threads, arguments)

    def rows_launch(self, plan: RowsPlan, kernel: Any) -> Callable[[int], None]:
        weights = self.upload(arrange_weights(self.weight, plan.tile_n, plan.k_bytes))
        channels = self.upload(channel_constants(self.bias, self.rescale, plan.tile_n))
        arguments = [
            (plan.tensor_map(s.source.data.ptr), weights, channels, s.output, plan.shape_argument())
            for s in self.sets
        ]
        return self.launcher(kernel, plan, plan.threads, arguments)

    def launcher(
        self, kernel: Any, plan: Plan | RowsPlan, threads: int, arguments: list[tuple[Any, ...]]
    ) -> Callable[[int], None]:
        kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
        grid = (*plan.grid, 1)

        def launch(i: int) -> None:
            kernel(grid, (threads, 1, 1), arguments[i % len(arguments)], shared_mem=plan.shared_bytes)

        return launch

    def same_as_first(self, launch: Callable[[int], None]) -> bool:
        output = self.sets[0].output
        output.fill(0xA5)
        launch(0)
        if self.first is None:
            self.first = output.copy()
        return bool((self.first == output).all())

    def microseconds(self, launch: Callable[[int], None]) -> float:
        times: list[float] = []
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        for _ in range(RUNS):
            launch(0)
            start.record()
            for i in range(LAUNCHES):
                launch(i)
            end.record()
            end.synchronize()
            times.append(float(self.cupy.cuda.get_elapsed_time(start, end)) / LAUNCHES * 1e3)
        return sorted(times)[RUNS // 2]


def candidates(conv: Convolution) -> Iterator[tuple[str, Plan | RowsPlan]]:
    for number, config in enumerate(CONFIGS):
        try:
            yield f"{number}: {config}", Plan(conv, config)
        except EngineError:
            continue
    for rows, teams in ROWS:
        try:
            yield f"rows {rows} x {teams} teams", RowsPlan(conv, rows, teams)
        except EngineError:
            continue


def binary_key(plan: Plan | RowsPlan) -> BinaryKey:
    return type(plan), tuple(plan.defines.items())


def build(cupy: Any, library: Path, plans: list[Plan | RowsPlan]) -> dict[BinaryKey, Any]:
    """Compile what the plans need, each binary once, and load it."""
    keys = list(dict.fromkeys(map(binary_key, plans)))
    with ThreadPoolExecutor() as pool:
        reports = pool.map(
            lambda key: compile_kernel(library, SOURCES[key[0]][0], dict(key[1]), "sm_90a"), keys
        )
        modules = {}
        with tempfile.TemporaryDirectory() as folder:
            for i, (key, report) in enumerate(zip(keys, reports, strict=True)):
                file = Path(folder) / f"{i}.cubin"
                file.write_bytes(report.cubin)
                modules[key] = cupy.RawModule(path=str(file))
                modules[key].get_function(SOURCES[key[0]][1])  # loads it while the file is there
    return modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--layers", default="", help="names separated by commas; all by default")
    parser.add_argument("--peak-tops", type=float, default=1979.0)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes per second")
    options = parser.parse_args()
    try:
        import cupy
    except ImportError:
        sys.exit("CuPy is not installed: pip install int4-resnet50[cuda13]")
    try:
        capability = cupy.cuda.Device().compute_capability
    except cupy.cuda.runtime.CUDARuntimeError as error:
        sys.exit(f"no usable GPU: {error}")
    if capability != "90":
        sys.exit(f"these kernels run on compute capability 9.0 only; this GPU has {capability}")
    library = find_nvrtc()
    if library is None:
        sys.exit("libnvrtc is not installed: pip install nvidia-cuda-nvrtc")

    wanted = set(filter(None, options.layers.split(",")))
    layers = [layer for layer in resnet50(options.batch) if not wanted or layer.name in wanted]
    modules = build(cupy, library, [plan for layer in layers for _, plan in candidates(layer.conv)])
    total, wrong = 0.0, 0
    for layer in layers:
        conv, bench = layer.conv, Bench(cupy, layer.conv)
        operations = 2 * conv.multiply_adds
        moved = conv.activation_bytes + conv.weight_bytes
        floor = max(operations / options.peak_tops / 1e12, moved / options.bandwidth) * 1e6
        best = float("inf")
        for name, plan in candidates(conv):
            kernel = modules[binary_key(plan)].get_function(SOURCES[type(plan)][1])
            launch = (
                bench.conv_launch(plan, kernel) if isinstance(plan, Plan) else bench.rows_launch(plan, kernel)
            )
            equal = bench.same_as_first(launch)
            wrong += not equal
            time = bench.microseconds(launch)
            best = min(best, time)
            print(
                f"{layer.name:7s} x{layer.count} {name:48s} {time:8.1f} us |"
                f" {operations / time / 1e6:7.1f} TOPS | {moved / time / 1e3:7.1f} GB/s |"
                f" {100 * floor / time:3.0f} % of the floor"
                f"{'' if equal else ' | DIFFERS'}",
                flush=True,
            )
        total += best * layer.count
    rate = options.batch / total * 1e6
    print(f"{total:.0f} us for {options.batch} images: {rate:.0f} images/s, the best of each layer")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
