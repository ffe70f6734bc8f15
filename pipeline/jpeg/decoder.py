"""JPEG files to samples or pixels on the GPU, equal to Pillow's in every byte; what the GPU may not have, by Pillow."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.errors import EngineError
from pipeline.errors import ImageError
from pipeline.jpeg.device import Device, Gpu
from pipeline.jpeg.launches import sources
from pipeline.jpeg.parse import HEADER, Headers, Refused, parse
from pipeline.jpeg.plan import ALIGNMENT, FEW_LANES, MANY_LANES, Plan, Sampling, chunks, reason_of, resized_sizes
from pipeline.jpeg.workspace import FIXED_BYTES, Workspace
from pipeline.samples.images import ImageRules, open_image, to_rgb
from pipeline.samples.preprocess import PILLOW_BYTES_PER_PIXEL, Preprocessor, quantize_table

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
        reasons: list[str | None] = [None] * len(job.files)
        self.reasons = ()
        for stream in (self._stream, *(workspace.stream for workspace in self._idle)):
            self._gpu.begin(stream)
        under_way: deque[tuple[Workspace, npt.NDArray[np.int64]]] = deque()
        # Pillow's threads change the filters of warnings as they come and go: here they get back what they were.
        with warnings.catch_warnings(), ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:

            def finish_one() -> None:
                workspace, numbers = under_way.popleft()
                damage = workspace.finish()
                self._idle.append(workspace)
                damaged = numbers[damage != 0]
                for number, word in zip(damaged.tolist(), damage[damage != 0].tolist(), strict=True):
                    reasons[number] = reason_of(word)
                self._decode_by_pillow(job, damaged.tolist(), pool)

            try:
                for begin in range(0, len(job.files), self._images):
                    group = range(begin, min(begin + self._images, len(job.files)))
                    left: dict[int, str] = {}
                    for numbers, plan, file_bytes in self._plans(job, group, left):
                        if not self._idle:
                            finish_one()
                        workspace = self._idle.popleft()
                        under_way.append((workspace, numbers))
                        outs = [
                            job.outs(number, int(header["height"]), int(header["width"]))
                            for number, header in zip(numbers.tolist(), plan.images["header"], strict=True)
                        ]
                        files = workspace.upload([_view(job.files[number]) for number in numbers], file_bytes)
                        workspace.enqueue(plan, files, np.array(outs, np.uint64), int(file_bytes.sum()))
                    for number, reason in left.items():
                        reasons[number] = reason
                    self._decode_by_pillow(job, list(left), pool)
            finally:
                while under_way:
                    finish_one()
        self.reasons = tuple(reasons)

    def _plans(
        self, job: Job, group: range, left: dict[int, str]
    ) -> Iterator[tuple[npt.NDArray[np.int64], Plan, npt.NDArray[np.int64]]]:
        """The group's files that the GPU may have, in chunks: their numbers, the plan, and the bytes of each file.

        Why it may not have the others goes to `left`, before the first chunk comes.
        """
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
        for chunk in chunks(bytes_each[fits], self._capacity, self._images):
            chosen = fits[chunk]
            yield numbers[chosen], plan.take(chosen), file_bytes[chosen]

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

    @staticmethod
    def _decode_by_pillow(job: Job, numbers: Sequence[int], pool: ThreadPoolExecutor) -> None:
        def decode(number: int) -> Any:
            try:
                return job.by_pillow(number)
            except ImageError as error:
                return error

        for number, result in zip(numbers, pool.map(decode, numbers), strict=True):
            job.keep(number, result)


def rgb_by_pillow(data: bytes, name: str, rules: ImageRules) -> npt.NDArray[np.uint8]:
    """uint8 (height, width, 3). Raises ImageError with the reason, as Preprocessor does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(to_rgb(open_image(io.BytesIO(data), name, rules), name))
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(name, "not enough memory to decode it") from error
        except Exception as error:  # on damaged data Pillow's readers raise nearly anything
            raise ImageError(name, f"damaged or cut short: {error or type(error).__name__}") from error


def _name(names: Sequence[str] | None, number: int) -> str:
    return names[number] if names is not None else f"file {number}"


def _view(file: File) -> bytes | memoryview:
    return file if isinstance(file, bytes) else memoryview(file).cast("B")
