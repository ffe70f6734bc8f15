"""Compile a kernel for a chip that need not be here: NVRTC, with ptxas's report."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from int4core.backends.cuda.source import KernelSource
from int4core.errors import EngineError

OPTIONS = ("--device-as-default-execution-space", "-std=c++17", "--ptxas-options=-v")
"""Given to every compilation besides the target."""

_TOOLKITS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/usr/lib/x86_64-linux-gnu")


def find_nvrtc() -> Path | None:
    """The newest libnvrtc of an installed nvidia wheel, else one of a CUDA toolkit, or None."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [lib for place in places for lib in Path(place).glob("*/lib/libnvrtc.so.*")]
    found = found or [lib for folder in _TOOLKITS for lib in Path(folder).glob("libnvrtc.so.*")]
    return max((lib for lib in found if "alt" not in lib.name), default=None)


def require_nvrtc() -> Path:
    """The library `find_nvrtc` finds. Raises EngineError when there is none."""
    library = find_nvrtc()
    if library is None:
        raise EngineError(
            "NVRTC, which compiles the kernels, is not installed: pip install 'int4-resnet50[cuda13]', or "
            "nvidia-cuda-nvrtc by itself"
        )
    return library


@dataclass(frozen=True)
class Report:
    """A compiled kernel: registers a thread, bytes spilled, whether wgmma had to be serialised, and the binary."""

    registers: int
    spilled: int
    serialised: bool
    cubin: bytes


@cache
def _load(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise EngineError(f"{library}: cannot be loaded: {error}") from error


@cache
def version(library: Path) -> str:
    """Such as `13.0`."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _load(library).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_source(library: Path, source: KernelSource, arch: str) -> Report:
    """Compile for `arch` (such as `sm_90a`), with `library` as NVRTC. Threads may do so side by side.

    Raises EngineError with the compiler's log when it fails.
    """
    nvrtc = _load(library)
    program = ctypes.c_void_p()
    text = source.text.encode()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.file.encode(), 0, None, None):
        raise EngineError(f"{library}: NVRTC does not take the program {source}")
    options = [f"--gpu-architecture={arch}", *OPTIONS]
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    said = log.value.decode()
    if status:
        raise EngineError(f"{source} does not compile for {arch} with NVRTC {version(library)}:\n{said}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.findall(r"Used (\d+) registers", said)
    if not spills or not registers:
        raise EngineError(f"{source}: ptxas gave no report of its registers and spills:\n{said}")
    spilled = sum(int(a) + int(b) for a, b in spills)
    return Report(max(map(int, registers)), spilled, "serialized" in said, cubin.raw)


def compile_kernel(library: Path, name: str, defines: dict[str, int], arch: str) -> Report:
    """`compile_source` of int4core/kernels/`name` with its constants."""
    return compile_source(library, KernelSource.of(name, Path(name).stem, defines), arch)
