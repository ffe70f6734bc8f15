"""Tensor files of both flavours are read in full or refused with a reason; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageError
from pipeline.samples.tensors import read_tensor_into

SHAPE = (3, 224, 224)


def sample(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    x = np.random.default_rng(2).integers(-127, 128, shape).astype(np.int8)
    x.reshape(-1)[-100:] = 0  # a string dtype drops zeros at the end, when it is asked for its value
    return x


def read(path: Path, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    out = np.full(shape, 99, dtype=np.int8)
    read_tensor_into(path, out)
    return out


def why(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    assert caught.value.path == str(path)
    return caught.value.why


@pytest.mark.parametrize("shape", [SHAPE, (3, 64, 64)])
def test_an_int8_array(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample(shape))
    np.testing.assert_array_equal(read(tmp_path / "x.npy", shape), sample(shape))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_header_versions(version: tuple[int, int], tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, sample(), version=version)
    np.testing.assert_array_equal(read(tmp_path / "x.npy"), sample())


@pytest.mark.parametrize("letter", ["S", "V"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_original_submissions_opaque_bytes(letter: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.frombuffer(sample().tobytes(), dtype=f"{letter}150528").reshape(shape))
    assert path.stat().st_size == 128 + 150_528
    np.testing.assert_array_equal(read(path), sample())


def test_fortran_order_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(sample()))
    assert "Fortran order" in why(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "array",
    [
        sample().astype(np.uint8),
        sample().astype(np.float32),
        sample((3, 224, 223)),
        sample((1, 3, 224, 224)),
        sample((224, 224, 3)),
        np.frombuffer(bytes(150_527), dtype="S150527"),
        np.frombuffer(bytes(301_056), dtype="S150528"),
        np.zeros(1, dtype=[("pixels", "i1", (150_528,))]),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}"[:40],
)
def test_other_types_and_shapes_are_refused(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    assert "the sample is int8 (3, 224, 224)" in why(tmp_path / "x.npy")


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Trap(tmp_path / "mark")], dtype=object), allow_pickle=True)
    assert "holds object" in why(tmp_path / "x.npy")
    assert not (tmp_path / "mark").exists()
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert (tmp_path / "mark").exists()  # so the trap does work


def test_too_few_and_too_many_bytes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample())
    whole = (tmp_path / "x.npy").read_bytes()
    path = tmp_path / "y.npy"
    path.write_bytes(whole[:-1])
    assert why(path) == "cut short: 150527 bytes of data where 150528 are due"
    path.write_bytes(whole + b"\0")
    assert why(path).startswith("longer than its header says")
    path.write_bytes(whole[:128])
    assert why(path).startswith("cut short: 0 bytes")


def test_what_is_not_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    assert why(path) == "there is no such file"
    path.touch()
    assert why(path) == "the file is empty"
    path.write_bytes(bytes(150_656))
    assert why(path).startswith("not a .npy file")
    np.savez(tmp_path / "x.npz", sample())
    assert why(tmp_path / "x.npz").startswith("not a .npy file")
    with path.open("wb") as file:
        np.lib.format.write_array(file, sample(), version=(3, 0))
    assert "version 3.0" in why(path)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 127), value=st.integers(0, 255), cut=st.integers(0, 140))
def test_a_damaged_header_gives_no_other_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(path, sample((3, 2, 2)))
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data if cut > 127 else data[:cut])
    out = np.empty((3, 2, 2), dtype=np.int8)
    try:
        read_tensor_into(path, out)
    except ImageError:
        return
    assert (out == sample((3, 2, 2))).all()


def test_the_slot_must_be_a_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample())
    for out in (np.empty(SHAPE, dtype=np.uint8), np.empty((224, 224, 3), dtype=np.int8).T):
        with pytest.raises(ValueError, match="C-contiguous int8"):
            read_tensor_into(tmp_path / "x.npy", out)
