"""JPEG files to samples or pixels on the GPU, equal to Pillow's in every byte; what the GPU may not have, by Pillow."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.errors import EngineError
from int4core.preprocess import PILLOW_BYTES_PER_PIXEL, quantize_table
from pipeline.errors import ImageError
from pipeline.jpeg.device import Device, Gpu
from pipeline.jpeg.launches import sources
from pipeline.jpeg.parse import HEADER, Headers, Refused, parse
from pipeline.jpeg.plan import ALIGNMENT, FEW_LANES, MANY_LANES, Plan, Sampling, chunks, reason_of, resized_sizes
from pipeline.jpeg.workspace import FIXED_BYTES, Workspace
from pipeline.samples.images import ImageRules, open_image, to_rgb
from pipeline.samples.preprocess import Preprocessor, pillow_errors

File: TypeAlias = "bytes | bytearray | memoryview"

BYTES_PER_IMAGE = 2 << 20
"""Device memory that an image under way is given, its file included: photographs of half a megapixel take less."""

MOST_SHARE = 0.8
"""Of the device memory that is free: more is not taken unasked."""

FEW_IMAGES = 1536
"""Up to so many images in all, many lanes decode each: the GPU would have nothing else to do."""


@dataclass(frozen=True)
class Job:
    """A call's files, where they go, and how Pillow makes the same."""

    files: Sequence[File]
    sampling: Sampling | None
    outs: Callable[[int, int, int], int]
    """The address of a file's output, by its number, height and width."""
    by_pillow: Callable[[int], Any]
    """Decode a file on the host. Raises ImageError."""
    keep: Callable[[int, Any], None]
    """Take what `by_pillow` returned, or the ImageError."""


class Decoder:
    """Decodes JPEG files on one GPU. Not for several threads at once.

    Attributes:
        reasons: per file of the last call: None where the GPU decoded it, or why Pillow did.
        sampling: how samples are made.
    """

    def __init__(
        self,
        device: int | Device = 0,
        max_images: int = 2048,
        *,
        size: int = 224,
        resize: int | None = 256,
        rules: ImageRules | None = None,
        streams: int = 4,
        memory_bytes: int | None = None,
    ) -> None:
        """
        device: the GPU's number.
        max_images: under way at a time, on all `streams` together.
        size, resize, rules: as Preprocessor's.
        memory_bytes: device memory, in all; BYTES_PER_IMAGE an image unless the GPU has less. A file that takes more
            than a stream's share of it goes to Pillow.

        Raises EngineError: no CuPy, no GPU, no compiler, or not so much memory.
        """
        if streams < 1 or max_images < streams:
            raise ValueError(f"{max_images} images on {streams} streams")
        self.sampling = Sampling(size, resize)
        self.reasons: tuple[str | None, ...] = ()
        self._preprocessor = Preprocessor(size, resize, rules)
        self._rules = self._preprocessor.rules
        self._gpu: Device = Gpu(device) if isinstance(device, int) else device
        self._gpu.load(sources(self.sampling))
        if memory_bytes is None:
            memory_bytes = min(max_images * BYTES_PER_IMAGE, int(MOST_SHARE * self._gpu.free_bytes))
        share, images = memory_bytes // streams // ALIGNMENT * ALIGNMENT, max_images // streams
        if share < images * FIXED_BYTES + BYTES_PER_IMAGE:
            raise EngineError(
                f"{memory_bytes / 2**20:,.0f} MiB of device memory are too little to decode {max_images} images at a "
                f"time: ask for fewer"
            )
        table = quantize_table()
        self._table, self._table_memory = self._gpu.allocate(table.nbytes)
        self._stream = self._gpu.stream()
        self._gpu.begin(self._stream)
        self._put(self._table, table)
        self._idle = deque(Workspace(self._gpu, share, images, self._table) for _ in range(streams))
        self._images, self._capacity = images, self._idle[0].capacity

    def samples(self, files: Sequence[File], out: Any, names: Sequence[str] | None = None) -> list[ImageError | None]:
        """Fill `out`, a C-contiguous int8 array (len(files), 3, size, size) on the GPU, with the files' samples.

        Returns what Pillow has against each file; its place in `out` is then as it was. `names` are for these errors.
        """
        shape = (len(files), 3, self.sampling.size, self.sampling.size)
        if out.shape != shape or out.dtype != np.int8 or not out.flags.c_contiguous:
            raise ValueError(f"samples of {len(files)} files are a C-contiguous int8 array {shape}")
        errors: list[ImageError | None] = [None] * len(files)
        base, stride = self._gpu.address(out), int(np.prod(shape[1:]))

        def by_pillow(number: int) -> npt.NDArray[np.int8]:
            sample = np.empty(shape[1:], np.int8)
            self._preprocessor.decode_bytes(bytes(files[number]), _name(names, number), sample)
            return sample

        def keep(number: int, result: npt.NDArray[np.int8] | ImageError) -> None:
            if isinstance(result, ImageError):
                errors[number] = result
            else:
                self._put(base + number * stride, result)

        self._run(Job(files, self.sampling, lambda number, _h, _w: base + number * stride, by_pillow, keep))
        return errors

    def rgb(self, files: Sequence[File], names: Sequence[str] | None = None) -> list[Any]:
        """The files' pixels, a uint8 array (height, width, 3) on the GPU each, as Pillow's convert("RGB") has them.

        In place of a file that Pillow has something against: the ImageError.
        """
        images: list[Any] = [None] * len(files)

        def new(number: int, height: int, width: int) -> int:
            images[number] = self._gpu.empty((height, width, 3))
            return self._gpu.address(images[number])

        def by_pillow(number: int) -> npt.NDArray[np.uint8]:
            return rgb_by_pillow(bytes(files[number]), _name(names, number), self._rules)

        def keep(number: int, result: npt.NDArray[np.uint8] | ImageError) -> None:
            if isinstance(result, ImageError):
                images[number] = result
            else:
                self._put(new(number, *result.shape[:2]), result)

        self._run(Job(files, None, new, by_pillow, keep))
        return images

    def _put(self, address: int, array: npt.NDArray[Any]) -> None:
        self._gpu.upload(address, array, self._stream)
        self._gpu.wait(self._stream)

    def _run(self, job: Job) -> None:
        self.reasons = ()
        for stream in (self._stream, *(workspace.stream for workspace in self._idle)):
            self._gpu.begin(stream)
        run = _Run(job, self._idle)
        # Pillow's threads change the filters of warnings as they come and go: here they get back what they were.
        with warnings.catch_warnings(), run:
            for begin in range(0, len(job.files), self._images):
                group = range(begin, min(begin + self._images, len(job.files)))
                left: dict[int, str] = {}
                for chunk in self._chunks(job, group, left):
                    run.start(chunk)
                run.decode_by_pillow(left)
            run.finish()
        self.reasons = tuple(run.reasons)

    def _chunks(self, job: Job, group: range, left: dict[int, str]) -> Iterator[_Chunk]:
        """The group's files that the GPU may have; why it may not have the others goes to `left`, by number."""
        taken, records = [], []
        for number in group:
            try:
                records.append(parse(_view(job.files[number])))
                taken.append(number)
            except Refused as refused:
                left[number] = str(refused)
        if not taken:
            return
        headers = np.frombuffer(b"".join(records), HEADER)
        numbers = np.array(taken, np.int64)
        lengths = np.array([len(_view(job.files[number])) for number in taken], np.int64)
        against = self._against(headers, lengths, job.sampling)
        plan = Plan.of(headers, job.sampling, MANY_LANES if len(job.files) <= FEW_IMAGES else FEW_LANES)
        file_bytes = (lengths // ALIGNMENT + 1) * ALIGNMENT  # kernels read whole words of 16 bytes
        bytes_each = plan.bytes_each + file_bytes
        against[bytes_each > self._capacity] = "more device memory than the decoder has"
        for number, reason in zip(taken, against, strict=True):
            if reason:
                left[number] = str(reason)
        fits = np.flatnonzero(against == "")
        for span in chunks(bytes_each[fits], self._capacity, self._images):
            chosen = fits[span]
            yield _Chunk(numbers[chosen].tolist(), plan.take(chosen), file_bytes[chosen])

    def _against(
        self, headers: Headers, file_bytes: npt.NDArray[np.int64], sampling: Sampling | None
    ) -> npt.NDArray[np.object_]:
        """What the rules for images may have against each: Pillow's side decides, and says it."""
        width, height = headers["width"].astype(np.int64), headers["height"].astype(np.int64)
        against = np.full(len(headers), "", np.object_)
        against[(width * height > self._rules.max_pixels) | (file_bytes > self._rules.max_bytes)] = "too large"
        if sampling is None:
            return against
        if sampling.resize is None:
            against[np.minimum(width, height) < sampling.size] = "smaller than a sample"
            return against
        new_width, new_height = resized_sizes(width, height, sampling.resize)
        most = np.maximum(new_width * height, sampling.size * new_height) * PILLOW_BYTES_PER_PIXEL
        against[most > self._rules.max_memory] = "too thin"
        return against


@dataclass(frozen=True)
class _Chunk:
    """Files that go to the GPU together: their numbers, the plan, and the bytes that each takes there."""

    numbers: list[int]
    plan: Plan
    file_bytes: npt.NDArray[np.int64]


class _Run:
    """A call under way. Leaving it waits for the GPU and for Pillow, and gives every workspace back to `idle`.

    `finish` takes what is left then, unless the call has failed.

    Attributes:
        reasons: per file.
    """

    def __init__(self, job: Job, idle: deque[Workspace]) -> None:
        self.reasons: list[str | None] = [None] * len(job.files)
        self._job = job
        self._idle = idle
        self._under_way: deque[tuple[Workspace, _Chunk]] = deque()
        self._pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        with self._pool:
            while self._under_way:
                self._wait_for_first()

    def start(self, chunk: _Chunk) -> None:
        """Have the GPU decode it, when a workspace is free."""
        if not self._idle:
            self._finish_first()
        headers = chunk.plan.images["header"]
        sizes = zip(chunk.numbers, headers["height"].tolist(), headers["width"].tolist(), strict=True)
        outs = np.array([self._job.outs(*size) for size in sizes], np.uint64)
        workspace = self._idle.popleft()
        self._under_way.append((workspace, chunk))
        files = workspace.upload([_view(self._job.files[number]) for number in chunk.numbers], chunk.file_bytes)
        workspace.enqueue(chunk.plan, files, outs, int(chunk.file_bytes.sum()))

    def finish(self) -> None:
        """Wait for all of it."""
        while self._under_way:
            self._finish_first()

    def decode_by_pillow(self, left: Mapping[int, str]) -> None:
        """Decode these files on the host, for these reasons."""

        def decode(number: int) -> Any:
            try:
                return self._job.by_pillow(number)
            except ImageError as error:
                return error

        for number, result in zip(left, self._pool.map(decode, left), strict=True):
            self.reasons[number] = left[number]
            self._job.keep(number, result)

    def _finish_first(self) -> None:
        chunk, damage = self._wait_for_first()
        found = zip(chunk.numbers, damage, strict=True)
        self.decode_by_pillow({number: reason_of(word) for number, word in found if word})

    def _wait_for_first(self) -> tuple[_Chunk, list[int]]:
        """A chunk, and what is wrong with each of its files."""
        workspace, chunk = self._under_way.popleft()
        self._idle.append(workspace)
        return chunk, workspace.finish().tolist()


def rgb_by_pillow(data: bytes, name: str, rules: ImageRules) -> npt.NDArray[np.uint8]:
    """uint8 (height, width, 3). Raises ImageError with the reason, as Preprocessor does."""
    with pillow_errors(name):
        return np.asarray(to_rgb(open_image(io.BytesIO(data), name, rules), name))


def _name(names: Sequence[str] | None, number: int) -> str:
    return names[number] if names is not None else f"file {number}"


def _view(file: File) -> bytes | memoryview:
    return file if isinstance(file, bytes) else memoryview(file).cast("B")
