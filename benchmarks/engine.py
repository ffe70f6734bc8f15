"""The CUDA engine on the GPU at hand: is it right, and how fast is it?

    python -m benchmarks.engine [--model DIR] [--shared ../shared] [--sections equality,operations,rates,data]

- equality: 1,024 random images and the golden tensors against the NumPy engine. A difference ends the program with 1.
- operations: each operation alone, buffers rotating over several times the L2: us, TOPS and their share of what
  cuBLASLt's int8 GEMM gives in the same run, GB/s and their share of a device copy.
- rates: images/s of whole batches, inputs on the device, the median of 24 graph replays after warm-up, other inputs
  each time; and torchvision's ResNet-50 in fp16 as the peer at hand.
- data: whole batches for seconds on end, of random samples and of images: us, watts, joules and images/s. What a
  product costs depends on how many bits change.
- api: images/s of `Engine.stream` from arrays on the GPU, in pinned and in pageable memory, and their shares of what
  the graph alone gives, replayed back to back in the same seconds.
- latency: batch 1, p50, p90, p99 of 2,000 replays, host to host without copies.

`--profile` runs every operation of one batch once, without a graph, for ncu.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.board import Board
from benchmarks.sections import add_sections
from benchmarks.torch_peers import copy_gbs, int8_peak_tops, resnet50_rates
from int4core.backends.cuda.backend import CudaBackend
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork
from int4core.engine import Engine
from int4core.errors import EngineError, Int4CoreError, printable, printed
from int4core.model import Model
from int4core.preprocess import preprocess
from int4core.ranges import captured
from int4core.streams import run_command
from int4core.tuning.measure import Site, microseconds, tensor_bytes
from pipeline.samples.library import IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
RANDOM_IMAGES = 1024
REPLAYS = 24
WARM_UP = 5
LATENCY_RUNS = 2000
SETS, BATCHES, ROUNDS = 4, 60, 5
"""Of `api`: inputs that take turns, batches of a round, rounds."""

PEER_BATCHES = [1, 32, 128, 512]
COMPILED_BATCHES = [128]


def random_images(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.random.default_rng(seed).integers(-128, 128, (n, *shape), dtype=np.int8)


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Layers of `mine` that differ from the same ones of `theirs`."""
    assert mine, "nothing to compare"
    return [name for name, value in mine.items() if not np.array_equal(value, theirs[name])]


def equality(model: Model, shared: Path) -> Iterator[tuple[str, bool]]:
    """(what was compared, whether it is equal)."""
    with Engine(model, "numpy") as cpu, Engine(model, "cuda", batch_size=256) as gpu:
        x = random_images(RANDOM_IMAGES, gpu.input_shape)
        yield f"{RANDOM_IMAGES} random images, int32 sums", np.array_equal(cpu.accumulators(x), gpu.accumulators(x))
        for n in (1, 3):
            different = differences(gpu.trace(x[:n]), cpu.trace(x[:n]))
            yield f"{n} random images, every fused layer {different or ''}", not different
    golden, published = shared / "golden", shared / "model-v0.5" / "model"
    if not golden.is_dir():
        print(f"{golden} is not there: the golden tensors are left out")
        return
    with Engine(Model.load(published), "cuda", batch_size=32) as gpu:
        yield from _golden(gpu, golden, shared / "imagenet" / "sample200")


def _golden(gpu: Engine, golden: Path, images: Path) -> Iterator[tuple[str, bool]]:
    eight = np.load(golden / "inputs8.npz")
    yield "the logits of the 8 golden images", np.array_equal(gpu.accumulators(eight["x"]), eight["logits"])
    layers = np.load(golden / "layers_image0.npz")
    trace = {name: value[0] for name, value in gpu.trace(eight["x"][:1]).items()}
    common = [name for name in trace if name in layers]
    different = [name for name in common if not np.array_equal(trace[name].reshape(layers[name].shape), layers[name])]
    yield f"{len(common)} golden layers {different or ''}", not different and len(common) > 40
    if images.is_dir():
        from pipeline.samples.library import SampleLibrary
        from pipeline.samples.preprocess import Preprocessor

        paths = SampleLibrary.from_images(images).paths
        x, preprocessor = np.empty((len(paths), 3, 224, 224), np.int8), Preprocessor()
        for path, sample in zip(paths, x, strict=True):
            preprocessor.decode_into(path, sample)
        logits = np.load(golden / "sample200_logits.npz")["logits"]
        yield f"the logits of {len(x)} JPEGs", np.array_equal(gpu.accumulators(x), logits)


def operations(network: DeviceNetwork, n: int, torch: Any) -> float:
    """Print a line an operation; returns the sum in microseconds."""
    peak, copy = int8_peak_tops(torch), copy_gbs(torch)
    plan = network.plan(n)
    sizes = tensor_bytes(plan)
    print(f"\nOperations, batch {n}, each alone, buffers rotating over several times the L2")
    print(f"int8 GEMM (torch._int_mm, 8192^3): {peak:,.0f} TOPS, copy: {copy:,.0f} GB/s")
    columns = f"{'us':>8s} {'TOPS':>7s} {'peak':>5s} {'GB/s':>6s} {'copy':>5s}"
    print(f"{'operation':16s} {'shape':44s} {'kernel':52s} {columns}")
    total = 0.0
    seen: dict[tuple[str, str], float] = {}
    for step in plan.steps:
        op = step.op
        key = (str(op), str(step.kernel))
        if key not in seen:
            seen[key] = microseconds(network, step.kernel, Site.make(network, op, sizes))
        us = seen[key]
        total += us
        tops, gbs = 2 * op.multiply_adds / us / 1e6, (op.activation_bytes + op.weight_bytes) / us / 1e3
        print(
            f"{op.name:16s} {op!s:44s} {step.kernel!s:52s} {us:8.1f} {tops:7.1f} {tops / peak:5.0%} {gbs:6.0f} "
            f"{gbs / copy:5.0%}",
            flush=True,
        )
    print(f"sum: {total:,.0f} us for {n} images, {n / total * 1e6:,.0f} images/s; the graph of them all: see rates")
    return total


def replays_us(network: DeviceNetwork, batch: DeviceBatch, stream: Any, count: int) -> list[float]:
    """Microseconds of graph replays, other random inputs each time."""
    cupy, times = network.cupy, []
    for i in range(count + WARM_UP):
        with stream:
            batch.input[...] = cupy.random.randint(-128, 128, batch.input.shape, cupy.int8)
        stream.synchronize()
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        batch.run(stream)
        end.record(stream)
        end.synchronize()
        if i >= WARM_UP:
            times.append(float(cupy.cuda.get_elapsed_time(start, end)) * 1e3)
    return times


def rates(network: DeviceNetwork, batches: list[int]) -> None:
    print("\nWhole network, inputs on the device")
    stream = network.cupy.cuda.Stream(non_blocking=True)
    for n in batches:
        try:
            batch = network.batch(n)
        except EngineError as error:
            print(f"  batch {n:5d}: {printed(error)}")
            continue
        times = replays_us(network, batch, stream, REPLAYS)
        median = statistics.median(times)
        print(
            f"  batch {n:5d}: {median:10.1f} us ({min(times):.1f} to {max(times):.1f}) | "
            f"{n / median * 1e6:10,.0f} images/s",
            flush=True,
        )
        del batch


def data(network: DeviceNetwork, n: int, images: Path, seconds: float) -> None:
    if not images.is_dir():
        print(f"{images} is not there: real images are left out")
        return
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    real = np.stack([preprocess(path, network.size[0]) for path in files[:n]])
    inputs = {
        "random": random_images(n, real.shape[1:]),
        f"{len(real)} images, replicated": real[np.arange(n) % len(real)],
    }
    print(f"\nWhole network, batch {n}, {seconds:g} s on end")
    batch, stream, board = network.batch(n), network.cupy.cuda.Stream(), Board(network.device.pci_bus_id)
    us = statistics.median(replays_us(network, batch, stream, REPLAYS))
    for _ in range(2):
        for what, samples in inputs.items():
            batch.input.set(samples, stream)
            found = board.on_end(stream, lambda: batch.run(stream), us, seconds)
            print(f"  {what:28s} {found} | {n / found.us * 1e6:10,.0f} images/s", flush=True)


def api(model: Model, n: int) -> None:
    """README's lines, on batches that are there: the rounds of each kind and of the bare graph take turns."""
    with Engine(model, "cuda", batch_size=n) as engine:
        network = cast("CudaBackend", engine.backend).network
        cupy, batch = network.cupy, network.batch(n)
        stream = cupy.cuda.Stream(non_blocking=True)
        pageable = [random_images(n, engine.input_shape, seed) for seed in range(SETS)]
        kinds = {"on the GPU": [cupy.asarray(x) for x in pageable], "pinned": [], "pageable": pageable}
        for x in pageable:
            memory = cupy.cuda.alloc_pinned_memory(x.nbytes)
            kinds["pinned"].append(np.frombuffer(memory, np.int8, x.size).reshape(x.shape))
            kinds["pinned"][-1][:] = x

        def graph(_: list[Any]) -> None:
            for i in range(BATCHES):
                with stream:
                    cupy.copyto(batch.input, kinds["on the GPU"][i % SETS])
                batch.run(stream)

        def flow(inputs: list[Any]) -> None:
            for _ in engine.stream(inputs[i % SETS] for i in range(BATCHES)):
                pass

        works = {"the graph alone": graph, **dict.fromkeys(kinds, flow)}
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(ROUNDS + 1):
            for name, work in works.items():
                network.device.synchronize()
                began = time.perf_counter()
                work(kinds.get(name, []))
                network.device.synchronize()
                if turn:  # the first one makes memory
                    times[name].append(time.perf_counter() - began)
    bare = statistics.median(times["the graph alone"])
    print(f"\nEngine.stream, batches of {n}, top-1: medians of {ROUNDS} rounds of {BATCHES} batches")
    for name, rounds in times.items():
        median = statistics.median(rounds)
        print(f"  {name:16s}: {n * BATCHES / median:10,.0f} images/s, {bare / median:.1%} of the graph", flush=True)


def latency(network: DeviceNetwork) -> None:
    """Batch 1, from the launch to the synchronised end."""
    stream, batch, times = network.cupy.cuda.Stream(non_blocking=True), network.batch(1), []
    for _ in range(LATENCY_RUNS + 100):
        began = time.perf_counter()
        batch.run(stream)
        stream.synchronize()
        times.append((time.perf_counter() - began) * 1e6)
    p50, p90, p99 = np.percentile(times[100:], [50, 90, 99])
    print(f"\nBatch 1 latency: p50 {p50:.1f} us, p90 {p90:.1f} us, p99 {p99:.1f} us")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "model")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the golden tensors")
    add_sections(parser, ("equality", "operations", "rates", "data", "api", "latency", "peers"))
    parser.add_argument("--batch", type=int, default=1024, help="of operations, data, api and --profile")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each input of `data` (default: %(default)g)")
    parser.add_argument("--batches", default="1,8,32,128,512,1024,2048")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    try:
        return run(options)
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    model = Model.load(options.model)
    network = DeviceNetwork(model)
    if options.profile:
        batch, stream = network.batch(options.batch), network.cupy.cuda.Stream(non_blocking=True)
        with captured(network.cupy):
            batch.run_layers(stream)
            network.device.synchronize()
        return 0
    network.batch(1)
    print(f"{printable(options.model)}: {network.notice}")
    wrong = 0

    def section(name: str, work: Callable[[], Any]) -> None:
        if name in options.sections:
            work()

    def compare() -> None:
        nonlocal wrong
        for what, equal in equality(model, options.shared):
            print(f"  {'equal  ' if equal else 'DIFFERS'} {what}", flush=True)
            wrong += not equal

    def peers() -> None:
        import torch

        print("\nPeers in the same run")
        for rate in resnet50_rates(torch, PEER_BATCHES, COMPILED_BATCHES):
            print(f"  {rate.name:42s} batch {rate.batch:5d}: {rate.images_per_s:10,.0f} images/s", flush=True)

    def table() -> None:
        import torch

        operations(network, options.batch, torch)

    section("equality", compare)
    section("operations", table)
    section("rates", lambda: rates(network, [int(n) for n in options.batches.split(",")]))
    section("data", lambda: data(network, options.batch, options.shared / "imagenet" / "sample200", options.seconds))
    section("api", lambda: api(model, options.batch))
    section("latency", lambda: latency(network))
    section("peers", peers)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
