"""The GPU at hand: CuPy, loaded only when asked for, and the chip it drives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from int4core.backends.cuda.chips import CHIPS, Chip, name_of
from int4core.errors import EngineError

INSTALL = "pip install 'cupy-cuda13x[ctk]' (or 'cupy-cuda12x[ctk]' with a driver for CUDA 12)"


def load_cupy() -> Any:
    """The cupy module. Raises EngineError when it is not installed, broken, or finds no GPU."""
    try:
        import cupy
    except Exception as error:  # a broken wheel fails with whatever its libraries raise
        raise EngineError(f"CuPy cannot be imported ({error}): {INSTALL}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise EngineError(f"no usable GPU: {error}; `python -m pipeline.doctor` says what is missing") from error
    if count == 0:
        raise EngineError("no usable GPU: the driver shows none")
    return cupy


def chip_at(cupy: Any, index: int) -> Chip:
    """GPU `index` as a Chip: the table's rates where the name is in it, the driver's own limits always."""
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    driver_name = properties["name"].decode()
    known = name_of(driver_name)
    capability = (properties["major"], properties["minor"])
    chip = CHIPS[known] if known else Chip(driver_name, capability, 0, 0)
    return replace(
        chip,
        capability=capability,
        multiprocessors=properties["multiProcessorCount"],
        shared_bytes=properties["sharedMemPerBlockOptin"],
    )


@contextmanager
def memory_errors(what: str, n: int | None = None) -> Iterator[None]:
    """CuPy's out-of-memory errors as EngineError with the remedy; `n` images of a batch that `what` is for."""
    cupy = load_cupy()
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        batches = "" if n is None else f" for batches of {n}"
        raise EngineError(f"no device memory for {what}{batches}: choose a smaller batch ({error})") from error
