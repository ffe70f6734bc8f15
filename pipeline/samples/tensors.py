"""Prepared samples: a folder of `.npy` files that hold int8 CHW pixels, read with no decoding.

Two flavours are read. An int8 array (3, H, W), as `np.save` writes it; and the original submission's: one
opaque element of 3*H*W bytes (dtype S150528 or V150528 for 224 x 224), which holds the same int8 CHW pixels.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pipeline.errors import ImageError
from pipeline.samples.files import DEFAULT_MAX_BYTES, open_sample


def read_tensor_into(path: str | Path, out: npt.NDArray[np.int8], max_bytes: int = DEFAULT_MAX_BYTES) -> None:
    """Fill `out`, int8 (3, H, W) and C-contiguous, with the tensor at `path`.

    The bytes go from the file straight into `out`; nothing in the file is ever unpickled. Raises ImageError
    with the reason when the file is not such a tensor, is cut short, holds more than the tensor, or is larger
    than `max_bytes`.
    """
    if out.dtype != np.int8 or not out.flags.c_contiguous:
        raise ValueError("a sample is C-contiguous int8 (3, H, W)")
    with open_sample(path, max_bytes) as file:
        _check_header(path, file, out.shape)
        size = os.fstat(file.fileno()).st_size - file.tell()
        if size != out.nbytes:
            problem = "cut short" if size < out.nbytes else "longer than its header says"
            raise ImageError(path, f"{problem}: {size} bytes of data where {out.nbytes} are due")
        if file.readinto(out.data.cast("B")) != out.nbytes:
            raise ImageError(path, "cut short while it was read")


def _check_header(path: str | Path, file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Read the .npy header off `file`; raises ImageError unless it declares a sample of `shape`."""
    try:
        version = npy.read_magic(file)
        if version == (1, 0):
            found, fortran_order, dtype = npy.read_array_header_1_0(file)
        elif version == (2, 0):
            found, fortran_order, dtype = npy.read_array_header_2_0(file)
        else:
            raise ImageError(path, f".npy version {version[0]}.{version[1]}; save it again with np.save")
    except ImageError:
        raise
    except Exception as error:  # the header is a Python literal: what it breaks on depends on what is in it
        raise ImageError(path, f"not a .npy file, or its header is damaged: {error}") from error

    wanted = f"int8 {shape}"
    if dtype.kind in "SV" and dtype.names is None and dtype.subdtype is None:
        if dtype.itemsize != math.prod(shape) or found not in ((), (1,)):
            raise ImageError(path, f"holds {dtype.str} {found}; the sample is {wanted}")
        return
    if dtype != np.dtype(np.int8) or found != shape:
        raise ImageError(path, f"holds {dtype} {found}; the sample is {wanted}")
    if fortran_order:
        raise ImageError(path, "is in Fortran order; save it again from np.ascontiguousarray")
