"""The JPEG decoder on the GPU at hand: is it right, how fast is it, and what do others do?

    python -m benchmarks.jpeg [--images ../shared/imagenet/sample200] [--count 16384] [--seconds 3]

The images are replicated to --count and shuffled. Every rate's outputs are poisoned before its last run and compared
with Preprocessor's samples after it, all of them: a difference ends the program with 1.

- stages: each kernel over all images, one stream.
- from device memory: the files' bytes lie there; all images, 4,096 and 1,024, in one stream and in chunks on several.
- from pinned memory: copies included, in chunks on several streams; chunks are planned ahead, as by loaders.
- Decoder.samples: bytes objects in pageable memory, parsed and planned in the same thread.
- Pillow on one core; nvJPEG by torchvision, and nvImageCodec (nvidia-nvimgcodec-cu13[all]), where they are installed:
  how many files have Pillow's pixels.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
from PIL import Image
from PIL import __version__ as pillow_version

from int4core.errors import Int4CoreError, printed
from int4core.preprocess import quantize_table
from pipeline.jpeg.decoder import BYTES_PER_IMAGE, Decoder
from pipeline.jpeg.device import Gpu
from pipeline.jpeg.launches import Addresses, Orders, calls, sources
from pipeline.jpeg.parse import HEADER, parse
from pipeline.jpeg.plan import ALIGNMENT, FEW_LANES, MANY_LANES, Plan, Sampling, chunks, place
from pipeline.jpeg.workspace import FIXED_BYTES, Workspace
from pipeline.samples.preprocess import Preprocessor

ROOT = Path(__file__).resolve().parents[1]
SAMPLING = Sampling()
SAMPLE_BYTES = 3 * SAMPLING.size**2
POISON = 0x55
RUNS = 5


class Different(Exception):
    """Samples that are not Pillow's."""


@dataclass
class Load:
    """Files replicated and shuffled, side by side in pinned memory, and what their samples have to be.

    Attributes:
        files: those there are.
        numbers: (count,), which of them each image is.
        offsets, sizes: (count,), bytes of each in `pinned`.
        expected: int8 (len(files), 3, size, size), on the GPU.
        out: int8 (count, 3, size, size), on the GPU.
    """

    gpu: Gpu
    files: list[bytes]
    numbers: Any
    headers: Any
    offsets: Any
    sizes: Any
    pinned: Any
    expected: Any
    out: Any

    @classmethod
    def of(cls, gpu: Gpu, files: list[bytes], count: int) -> Load:
        rng = np.random.default_rng(0)
        numbers = rng.permutation(np.resize(np.arange(len(files)), count))
        headers = np.frombuffer(b"".join(map(parse, files)), HEADER)[numbers]
        lengths = np.array([len(file) for file in files])[numbers]
        sizes = (lengths // ALIGNMENT + 1) * ALIGNMENT
        offsets = np.cumsum(sizes) - sizes
        pinned = gpu.pinned(int(sizes.sum()))
        for number, offset in zip(numbers.tolist(), offsets.tolist(), strict=True):
            pinned[offset : offset + len(files[number])] = np.frombuffer(files[number], np.uint8)
        samples, preprocessor = np.empty((len(files), 3, SAMPLING.size, SAMPLING.size), np.int8), Preprocessor()
        for file, sample in zip(files, samples, strict=True):
            preprocessor.decode_bytes(file, "file", sample)
        out = gpu.cupy.empty((count, *samples.shape[1:]), np.int8)
        return cls(gpu, files, numbers, headers, offsets, sizes, pinned, gpu.cupy.asarray(samples), out)

    def outs(self, chosen: slice) -> Any:
        begin, end, _ = chosen.indices(len(self.numbers))
        return (np.arange(begin, end) * SAMPLE_BYTES + self.out.data.ptr).astype(np.uint64)

    def poison(self) -> None:
        self.out.view(np.uint8)[:] = POISON
        self.gpu.cupy.cuda.runtime.deviceSynchronize()

    def check(self, count: int) -> None:
        """Raises Different unless the first `count` outputs are right."""
        cupy, wrong = self.gpu.cupy, 0
        for begin in range(0, count, 512):
            numbers = cupy.asarray(self.numbers[begin : min(begin + 512, count)])
            same = self.out[begin : begin + len(numbers)] == self.expected[numbers]
            wrong += int((~same.reshape(len(numbers), -1).all(1)).sum())
        if wrong:
            raise Different(f"{wrong} of {count} samples are not Pillow's")


@dataclass(frozen=True)
class Chunk:
    """Images planned ahead."""

    plan: Plan
    span: slice
    """Of the load."""


class Streams:
    """Chunks on several streams, each with its own memory."""

    def __init__(self, load: Load, size: int, count: int, lanes: int, streams: int, copies: bool) -> None:
        self._load, self._copies = load, copies
        self.count = count
        plan = Plan.of(load.headers[:count], SAMPLING, lanes)
        each = plan.bytes_each + load.sizes[:count]
        self.bytes_per_image = float(each.mean()) + FIXED_BYTES
        capacity = int(each.max()) * 64 + int(each.mean() * size * 1.1)
        self._chunks = [Chunk(plan.take(span), span) for span in chunks(each, capacity, size)]
        table = quantize_table()
        self._table = load.gpu.cupy.asarray(table)
        total = capacity + FIXED_BYTES * size + ALIGNMENT
        streams = min(streams, len(self._chunks))
        self._spaces = [Workspace(load.gpu, total, size, self._table.data.ptr) for _ in range(streams)]
        self._device = None if copies else load.gpu.cupy.asarray(load.pinned[: self._end(slice(0, count))])

    def _end(self, span: slice) -> int:
        return int(self._load.offsets[span.stop - 1] + self._load.sizes[span.stop - 1])

    def __call__(self) -> None:
        """All images once. Raises Different when a kernel finds a file damaged."""
        load = self._load
        for number, chunk in enumerate(self._chunks):
            space = self._spaces[number % len(self._spaces)]
            if space.finish().any():
                raise Different("a kernel found a file damaged")
            begin, used = int(load.offsets[chunk.span.start]), 0
            if self._device is None:
                block = load.pinned[begin : self._end(chunk.span)]
                at, used = space.send(block), len(block)
            else:
                at = self._device.data.ptr + begin
            files = (load.offsets[chunk.span] - begin + at).astype(np.uint64)
            space.enqueue(chunk.plan, files, load.outs(chunk.span), used)
        for space in self._spaces:
            if space.finish().any():
                raise Different("a kernel found a file damaged")


def rate(load: Load, run: Callable[[], None], count: int, seconds: float = 0.0) -> float:
    """images/s, the median of RUNS runs or of those in `seconds`, on a host clock; the last run is checked."""
    run()
    times: list[float] = []
    while len(times) < RUNS or sum(times) < seconds:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    load.poison()
    run()
    load.check(count)
    return count / statistics.median(times)


def stages(load: Load, count: int, lanes: int) -> Iterator[tuple[str, float]]:
    """(kernel, ms), each the median of RUNS passes over `count` images in one stream."""
    cupy = load.gpu.cupy
    plan = Plan.of(load.headers[:count], SAMPLING, lanes)
    parts = cupy.cuda.alloc(int(plan.bytes_each.sum()))
    raw = cupy.asarray(load.pinned)
    images = plan.images
    images["scan"] = (load.offsets[:count] + images["header"]["scan_begin"] + raw.data.ptr).astype(np.uint64)
    images["out"] = load.outs(slice(0, count))
    place(images, plan.sizes, parts.ptr)
    orders = Orders.of(images, plan.fused)
    records, numbers = cupy.asarray(images.view(np.uint8)), cupy.asarray(orders.numbers)
    bits, damage, table = cupy.zeros(count, np.uint32), cupy.zeros(count, np.uint32), cupy.asarray(quantize_table())
    at = Addresses(*(array.data.ptr for array in (records, numbers, bits, damage, table)))
    listed = list(calls(count, orders, at, SAMPLING))
    times: list[list[float]] = [[] for _ in listed]
    load.poison()
    stream = load.gpu.stream()
    for _ in range(RUNS + 1):
        events = [cupy.cuda.Event() for _ in range(len(listed) + 1)]
        events[0].record(stream)
        for call, event in zip(listed, events[1:], strict=True):
            load.gpu.launch(call, stream)
            event.record(stream)
        stream.synchronize()
        for place_in, begin, end in zip(times, events, events[1:], strict=False):
            place_in.append(cupy.cuda.get_elapsed_time(begin, end))
    load.check(count)
    if damage.any():
        raise Different("a kernel found a file damaged")
    for call, found in zip(listed, times, strict=True):
        yield str(call.source), statistics.median(found[1:])


def pillow_rate(files: Sequence[bytes], seconds: float) -> float:
    """Files to samples on one core, images/s."""
    preprocessor, sample = Preprocessor(), np.empty((3, SAMPLING.size, SAMPLING.size), np.int8)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        preprocessor.decode_bytes(files[done % len(files)], "file", sample)
        done += 1
    return done / (time.perf_counter() - began)


@dataclass
class Other:
    """What another decoder does: images/s to RGB alone, how many files have Pillow's pixels, and how far others are."""

    rate: float = 0.0
    exact: int = 0
    largest: int = 0

    def compare(self, file: bytes, image: Any) -> None:
        """Take what it made of `file`, uint8 (h, w, 3)."""
        off = int(np.abs(image.astype(np.int16) - np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))).max())
        self.exact, self.largest = self.exact + (off == 0), max(self.largest, off)

    def __str__(self) -> str:
        return f"RGB alone: {self.exact} exact, off by up to {self.largest}"


def nvjpeg(load: Load, count: int) -> Other:
    """By torchvision. Raises ImportError without it."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in load.files]
    other = Other()
    for file, image in zip(load.files, decode_jpeg(tensors, ImageReadMode.RGB, device="cuda"), strict=True):
        other.compare(file, image.permute(1, 2, 0).cpu().numpy())
    batch = [tensors[number] for number in load.numbers[:count].tolist()]
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        decode_jpeg(batch, ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    other.rate = count / min(times[1:])
    return other


def nvimagecodec(load: Load, count: int) -> Other:
    """With its defaults, but for turning images, which Pillow does not. Raises ImportError without it."""
    nvimgcodec: Any = import_module("nvidia.nvimgcodec")
    decoder, params = nvimgcodec.Decoder(), nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def decode(files: Sequence[bytes]) -> list[Any]:
        return list(decoder.decode([nvimgcodec.CodeStream(file) for file in files], params=params))

    other = Other()
    for file, image in zip(load.files, decode(load.files), strict=True):
        if image is not None:  # it could not
            other.compare(file, np.asarray(image.cpu()))
    batch = [load.files[number] for number in load.numbers[:count].tolist()]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        images = decode(batch)
        # The decoder's stream is waited for; what it could not decode is None.
        next(image for image in reversed(images) if image is not None).cpu()
        times.append(time.perf_counter() - began)
    other.rate = count / min(times[1:])
    return other


def rgb_exact(load: Load) -> int:
    """How many of the files Decoder.rgb has as Pillow."""
    images = Decoder(load.gpu, 64, streams=2).rgb(load.files)
    expected = (np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in load.files)
    return sum(np.array_equal(image.get(), pixels) for image, pixels in zip(images, expected, strict=True))


def energy(gpu: Gpu, run: Callable[[], None], count: int, seconds: float) -> tuple[float, float]:
    """(images/s, mJ per image) of runs for `seconds` on end, by the board's own counter."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByPciBusId(gpu.device.pci_bus_id.encode())
    before, began, done = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run()
        done += count
    used = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before
    took = time.perf_counter() - began
    pynvml.nvmlShutdown()
    return done / took, used / done


def measure(args: argparse.Namespace) -> None:
    files = [path.read_bytes() for path in sorted(args.images.glob("*.JPEG"))]
    gpu = Gpu(0)
    gpu.load(sources(SAMPLING))
    print(f"{gpu.chip.name} ({gpu.chip.arch}), Pillow {pillow_version}; {gpu.compiled}")
    load = Load.of(gpu, files, args.count)
    free = gpu.cupy.get_default_memory_pool().free_all_blocks
    scans = load.headers["scan_bytes"].mean() / 1000
    print(f"{len(files)} files replicated to {args.count}, a scan of {scans:.1f} kB on average")
    print(f"pixels: {rgb_exact(load)} of {len(files)} files as Pillow has them")

    def row(what: str, found: float) -> None:
        print(f"  {what:<64} {found:>9,.0f} images/s", flush=True)

    for count, lanes in ((args.count, FEW_LANES), (1024, FEW_LANES), (1024, MANY_LANES)):
        found = dict(stages(load, count, lanes))
        print(f"stages, {count} images, {lanes} lanes, ms: sum {sum(found.values()):.2f}")
        for name, ms in found.items():
            print(f"  {name:<64} {ms:>9.3f} ms")
        free()

    print("from device memory")
    for count, size, lanes, streams in (
        (args.count, args.count, FEW_LANES, 1), (args.count, 2048, FEW_LANES, 4), (args.count, 1024, FEW_LANES, 4),
        (4096, 4096, FEW_LANES, 1), (4096, 1024, FEW_LANES, 4), (4096, 1024, MANY_LANES, 4),
        (1024, 1024, MANY_LANES, 1), (1024, 1024, FEW_LANES, 1), (1024, 256, MANY_LANES, 4),
    ):  # fmt: skip
        run = Streams(load, size, count, lanes, streams, copies=False)
        row(f"{count} images in chunks of {size}, {streams} streams, {lanes} lanes", rate(load, run, count))
        del run
        free()

    print("from pinned memory, copies included")
    for size, lanes, streams in (
        (2048, FEW_LANES, 4),
        (1024, FEW_LANES, 4),
        (1024, FEW_LANES, 6),
        (512, MANY_LANES, 4),
    ):
        run = Streams(load, size, args.count, lanes, streams, copies=True)
        row(f"{args.count} images in chunks of {size}, {streams} streams, {lanes} lanes", rate(load, run, args.count))
        if (size, streams) == (1024, 4):
            sustained, mj = energy(gpu, run, args.count, args.seconds)
            row(f"the same, {args.seconds:g} s on end, {mj:.2f} mJ per image", sustained)
            print(f"  device memory an image under way, without its output: {run.bytes_per_image / 2**20:.2f} MiB")
        del run
        free()

    decoder = Decoder(gpu, 4096)
    every = [files[number] for number in load.numbers.tolist()]
    print(f"Decoder.samples ({BYTES_PER_IMAGE / 2**20:g} MiB per image)")
    for count in (args.count, 1024):
        row(f"{count} files", rate(load, partial(_decode, decoder, every[:count], load), count))
    del decoder
    free()

    print("others")
    row("Pillow, files to samples, one core", pillow_rate(files, args.seconds))
    for name, measured in {"nvJPEG by torchvision": nvjpeg, "nvImageCodec": nvimagecodec}.items():
        try:
            other = measured(load, 2048)
        except ImportError as error:
            print(f"  {name}: not installed ({printed(error)})")
        else:
            row(f"{name}, of {len(files)} files {other}", other.rate)


def _decode(decoder: Decoder, files: list[bytes], load: Load) -> None:
    errors = decoder.samples(files, load.out[: len(files)])
    if any(errors) or any(decoder.reasons):
        raise Different(f"a file went to Pillow: {next(filter(None, decoder.reasons))}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Benchmark of the JPEG decoder on a GPU.")
    parser.add_argument("--images", type=Path, default=ROOT.parent / "shared" / "imagenet" / "sample200")
    parser.add_argument("--count", type=int, default=16384, help="images, replicated (default 16384)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of what is measured on end (default 3)")
    args = parser.parse_args(argv)
    if not list(args.images.glob("*.JPEG")):
        parser.error(f"no *.JPEG in {args.images}")
    try:
        measure(args)
    except (Different, Int4CoreError) as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
