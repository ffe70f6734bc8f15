"""Samples that were prepared earlier: .npy files that are mapped, not decoded.

Two flavours: an int8 array of the sample's shape, and the original submission's, whose array is one
string of the sample's bytes (dtype S150528 for 3 x 224 x 224) behind a 128-byte header.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import ImageError

Sample: TypeAlias = npt.NDArray[np.int8]


def read_tensor_into(path: str | Path, out: Sample) -> None:
    """Copy the sample in the .npy file `path` into `out`, int8 (3, H, W).

    Raises ImageError for a file that is not one sample of that shape.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            offset = _data_offset(path, file, out)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                flat = np.frombuffer(data, dtype=np.int8, count=out.size, offset=offset)
                np.copyto(out, flat.reshape(out.shape))
                del flat
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror or error}") from error


def _data_offset(path: Path, file: BinaryIO, out: Sample) -> int:
    """Where the data begin, once header and size say that they are one sample like `out`."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise ImageError(path, f"not a .npy file: {error or 'it is empty'}") from None
    is_array = dtype == np.int8 and shape == out.shape and not fortran
    is_string = dtype.kind in "SV" and dtype.itemsize == out.size and shape in ((), (1,))
    if not (is_array or is_string):
        order = " in Fortran order" if fortran else ""
        wanted = " ".join(map(str, out.shape))
        raise ImageError(path, f"holds {dtype} {shape}{order}; int8 {wanted} or S{out.size} is needed")
    offset = file.tell()
    size = path.stat().st_size
    if (wanted_size := offset + out.size) != size:
        raise ImageError(path, f"{size} bytes; a header of {offset} and a sample make {wanted_size}")
    return offset
