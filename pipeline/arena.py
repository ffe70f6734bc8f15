"""The shared-memory arena: fixed-size sample slots that loaders fill and the engine reads.

The segment is a named file in /dev/shm. Its name carries the pid and start time of the process that
made it, so that a later run can tell a dead run's segment from a living one's and sweep it. Space is
reserved when the segment is made: a full /dev/shm is an error at the start, never a bus error later.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import psutil

from pipeline.errors import PipelineError

SLOT_ALIGNMENT = 4096
_PREFIX = "int4-resnet50"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-(\d+)-[0-9a-f]+")


def segment_folder() -> Path:
    """/dev/shm where there is one (Linux), else the folder for temporary files."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class ArenaSpec:
    """All that another process needs to map the arena: the file, and the shape of its slots.

    Attributes:
        path: the segment.
        slots: how many samples fit.
        sample_shape: (3, H, W); a sample is int8, so its bytes are their product.
    """

    path: str
    slots: int
    sample_shape: tuple[int, int, int]

    @property
    def sample_bytes(self) -> int:
        channels, height, width = self.sample_shape
        return channels * height * width

    @property
    def slot_bytes(self) -> int:
        return -(-self.sample_bytes // SLOT_ALIGNMENT) * SLOT_ALIGNMENT

    @property
    def total_bytes(self) -> int:
        return self.slots * self.slot_bytes


class Arena:
    """A mapped segment. The process that creates it owns its life; others attach to it."""

    def __init__(self, spec: ArenaSpec, fd: int, owner: bool) -> None:
        self.spec = spec
        self._owner_pid = os.getpid() if owner else None
        try:
            self._map = mmap.mmap(fd, spec.total_bytes)
        finally:
            os.close(fd)
        raw = np.frombuffer(self._map, dtype=np.int8).reshape(spec.slots, spec.slot_bytes)
        self._samples = raw[:, : spec.sample_bytes]

    @classmethod
    def create(cls, slots: int, sample_shape: tuple[int, int, int], folder: Path | None = None) -> Arena:
        """Make a segment of `slots` samples of int8 `sample_shape` (3, H, W).

        Raises PipelineError when the folder has no room for it.
        """
        folder = segment_folder() if folder is None else folder
        started = int(psutil.Process().create_time() * 1000)
        path = folder / f"{_PREFIX}-{os.getpid()}-{started}-{secrets.token_hex(4)}"
        spec = ArenaSpec(str(path), slots, sample_shape)
        _check_room(folder, spec)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, spec.total_bytes)
            else:
                os.ftruncate(fd, spec.total_bytes)
        except OSError as error:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise PipelineError(
                f"{path}: cannot reserve {_mib(spec.total_bytes)} for {slots} samples: {error.strerror}; "
                "load fewer samples at a time (--lgts_performance_sample_count_override)"
            ) from error
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls(spec, fd, owner=True)

    @classmethod
    def attach(cls, spec: ArenaSpec) -> Arena:
        """Map a segment that another process made. Raises PipelineError when it is gone."""
        try:
            fd = os.open(spec.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise PipelineError(f"{spec.path}: this segment is gone, its run has ended") from None
        return cls(spec, fd, owner=False)

    def sample(self, slot: int) -> npt.NDArray[np.int8]:
        """The slot's sample as a writable view, int8 (3, H, W)."""
        sample: npt.NDArray[np.int8] = self._samples[slot]
        return sample.reshape(self.spec.sample_shape)

    def gather(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
        """Copy the samples of `slots` (N,) into one array, int8 (N, 3, H, W)."""
        batch: npt.NDArray[np.int8] = self._samples[slots]
        return batch.reshape(len(slots), *self.spec.sample_shape)

    def close(self) -> None:
        """Unmap; the owner also removes the segment. Safe to call twice."""
        if self._owner_pid == os.getpid():
            Path(self.spec.path).unlink(missing_ok=True)
        self._samples = np.empty((0, 0), dtype=np.int8)
        try:
            self._map.close()
        except BufferError:
            # A view of a sample is still alive somewhere; the mapping goes with the process.
            return

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep_stale(folder: Path | None = None) -> list[Path]:
    """Remove segments whose process is dead, and return what was removed."""
    folder = segment_folder() if folder is None else folder
    removed = []
    for path in folder.glob(f"{_PREFIX}-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or _is_running(int(match[1]), int(match[2])):
            continue
        try:
            path.unlink()
        except (FileNotFoundError, PermissionError):
            continue  # swept by another run, or another user's
        removed.append(path)
    return removed


def _is_running(pid: int, started_ms: int) -> bool:
    """Whether `pid` still is the process that started then; a pid that was reused is not.

    The tolerance is for clock adjustments: the kernel's start time is relative to boot.
    """
    try:
        return bool(abs(psutil.Process(pid).create_time() * 1000 - started_ms) < 5000)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _check_room(folder: Path, spec: ArenaSpec) -> None:
    free = os.statvfs(folder)
    room = free.f_bavail * free.f_frsize
    if folder == Path("/dev/shm"):
        room = min(room, psutil.virtual_memory().available)
    if spec.total_bytes > room:
        raise PipelineError(
            f"{folder}: {spec.slots} samples need {_mib(spec.total_bytes)} of shared memory and "
            f"{_mib(room)} are free; load fewer samples at a time "
            "(--lgts_performance_sample_count_override), or enlarge it "
            f"(mount -o remount,size=SIZE {folder}; docker run --shm-size SIZE)"
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
