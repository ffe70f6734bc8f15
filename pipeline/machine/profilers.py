"""Where NVIDIA's profilers are: on PATH, in a CUDA toolkit, or in a folder of their own."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Profiler:
    """A profiler's command, the folders it is installed to below the root, and how to get it."""

    command: str
    title: str
    folders: tuple[str, ...]
    remedy: str


_TOOLKITS = ("usr/local/cuda/bin", "usr/local/cuda-*/bin")

NSYS = Profiler(
    "nsys",
    "Nsight Systems",
    (*_TOOLKITS, "opt/nvidia/nsight-systems/*/bin", "opt/nvidia/nsight-systems-cli/*/bin"),
    "sudo apt-get install nsight-systems-cli  # from NVIDIA's repository, or https://developer.nvidia.com/nsight-systems",
)

NCU = Profiler(
    "ncu",
    "Nsight Compute",
    (*_TOOLKITS, "opt/nvidia/nsight-compute/*"),
    "sudo apt-get install cuda-nsight-compute-13-0  # from NVIDIA's repository, or "
    "https://developer.nvidia.com/nsight-compute",
)


def find_profiler(profiler: Profiler, root: Path = Path("/")) -> Path | None:
    """The one on PATH, else the newest of the usual folders below `root`; None without one."""
    on_path = shutil.which(profiler.command)
    if on_path:
        return Path(on_path)
    for folder in profiler.folders:
        found = [
            path for path in root.glob(f"{folder}/{profiler.command}") if path.is_file() and shutil.which(str(path))
        ]
        if found:
            return max(found, key=_versions)
    return None


def require_profiler(profiler: Profiler) -> Path:
    """Raises PipelineError, saying how to get it, when there is none."""
    found = find_profiler(profiler)
    if found is None:
        places = ", ".join(f"/{folder}" for folder in profiler.folders)
        raise PipelineError(
            f"{profiler.title} ({profiler.command}) is not on PATH, nor in {places}. To get it: {profiler.remedy}"
        )
    return found


def _versions(path: Path) -> tuple[int, ...]:
    """The numbers in a path: 2025.10 is newer than 2025.9."""
    return tuple(map(int, re.findall(r"\d+", str(path))))
