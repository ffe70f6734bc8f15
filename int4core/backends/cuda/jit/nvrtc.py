"""Compile a kernel for a chip that need not be here: NVRTC, with ptxas's report."""

from __future__ import annotations

import ctypes
import re
import uuid
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from int4core.backends.cuda.jit.source import KernelSource
from int4core.errors import EngineError

OPTIONS = ("--device-as-default-execution-space", "-std=c++17", "--ptxas-options=-v")
"""Given to every compilation besides the target."""

PORTABLE = "compute_80"
"""PTX that the driver compiles for chips of this capability and of all later ones."""

_TOOLKITS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/usr/lib/x86_64-linux-gnu")


def find_nvrtc() -> Path | None:
    """The newest libnvrtc of an installed nvidia wheel, else one of a CUDA toolkit, or None."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [lib for place in places for lib in Path(place).glob("*/lib/libnvrtc.so.*")]
    found = found or [lib for folder in _TOOLKITS for lib in Path(folder).glob("libnvrtc.so.*")]
    return max((lib for lib in found if _version_of(lib)), key=_version_of, default=None)


def _version_of(library: Path) -> tuple[int, ...]:
    """(13, 0, 48) of libnvrtc.so.13.0.48, or of a link to it; () of what is no such library."""
    names = (library.name, library.resolve().name)
    matches = [re.fullmatch(r"libnvrtc\.so\.(\d+(?:\.\d+)*)", name) for name in names]
    return max(tuple(map(int, match[1].split("."))) if match else () for match in matches)


def require_nvrtc() -> Path:
    """The library `find_nvrtc` finds. Raises EngineError when there is none."""
    library = find_nvrtc()
    if library is None:
        raise EngineError("NVRTC, which compiles the kernels, is not installed: pip install nvidia-cuda-nvrtc")
    return library


@dataclass(frozen=True)
class Report:
    """A compiled kernel: the binary, and what the compiler said of it.

    NVRTC may answer from a cache of its own and say nothing then: compile `fresh` for what is read from the log.
    """

    cubin: bytes
    log: str

    @property
    def registers(self) -> int:
        """Registers per thread."""
        return max(int(count) for count in self._found(r"Used (\d+) registers"))

    @property
    def spilled(self) -> int:
        """Bytes a thread stores to and loads from memory for want of registers."""
        return sum(int(count) for count in self._found(r"(\d+) bytes spill"))

    def _found(self, pattern: str) -> list[str]:
        found = re.findall(pattern, self.log)
        if not found:
            raise EngineError("ptxas gave no report of registers and spills:", self.log)
        return found


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


@cache
def known_targets(library: Path) -> frozenset[int]:
    """Compute capabilities that this NVRTC compiles for, as 75 for 7.5."""
    nvrtc, count = _load(library), ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(found)
    return frozenset(found)


def target(library: Path, arch: str) -> str:
    """What is compiled for a chip of `arch`: machine code, or PORTABLE where this NVRTC does not know the chip.

    Raises EngineError for a chip older than PORTABLE that it does not know.
    """
    capability = int(re.sub(r"\D", "", arch))
    if capability in known_targets(library):
        return arch
    if capability < int(re.sub(r"\D", "", PORTABLE)):
        raise EngineError(f"NVRTC {version(library)} does not compile for {arch} any more: install an older one")
    return PORTABLE


def compile_source(library: Path, source: KernelSource, arch: str, *, fresh: bool = False) -> Report:
    """Compile for `arch` (`sm_90a`; PORTABLE: to PTX) with `library` as NVRTC. Threads may do so side by side.

    `fresh` makes the text one that was never compiled before. Raises EngineError with the compiler's log when it fails.
    """
    nvrtc = _load(library)
    program = ctypes.c_void_p()
    text = source.text + (f"\n// {uuid.uuid4()}\n" if fresh else "")
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), source.file.encode(), 0, None, None):
        raise EngineError(f"{library}: NVRTC does not take the program {source}")
    try:
        options = [f"--gpu-architecture={arch}", *OPTIONS]
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if status:
            said = log.value.decode()
            raise EngineError(f"{source} does not compile for {arch} with NVRTC {version(library)}:", said)
        kind = "PTX" if arch == PORTABLE else "CUBIN"
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return Report(cubin.raw, log.value.decode())
