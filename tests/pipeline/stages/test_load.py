"""The loaders on real files: samples, reasons, and what loaders keep to themselves."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.jpeg.parse import HEADER, parse
from pipeline.memory.arena import Arena
from pipeline.memory.segment import Segment
from pipeline.samples.images import ImageRules
from pipeline.samples.preprocess import Preprocessor
from pipeline.samples.sources import PathLocator, Paths
from pipeline.stages import load
from pipeline.stages.channels import Task
from pipeline.stages.load import (
    BY_GPU,
    Loader,
    LoadResult,
    LoadWork,
    Preparation,
    SegmentLocator,
    SlotLocator,
    load_stage,
)
from tests.pipeline.conftest import PATIENCE_S

SIZE = 32


def photo(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def damaged_tiff(path: Path) -> Path:
    """One about which libtiff has something to print."""
    photo(path, 5)
    with Image.open(path) as image:
        image.save(path, compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    data[20:400] = b"\xff" * 380
    path.write_bytes(data)
    return path


def greedy_tiff(path: Path) -> Path:
    """A few bytes on the disk, and a tag of 100 MB that Pillow reads together with the header."""
    tags = {256: 60, 257: 50, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 50, 279: 3000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    entries += struct.pack("<HHII", 50000, 1, 100_000_000, 200)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4))
    os.truncate(path, 100_001_000)
    return path


def test_a_loader_names_bad_files_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = (
        photo(tmp_path / "a.png", 1),
        damaged_tiff(tmp_path / "damaged.tif"),
        greedy_tiff(tmp_path / "greedy.tif"),
        photo(tmp_path / "b.jpg", 2),
    )
    rules = ImageRules(max_pixels=1_000_000)
    results: list[LoadResult] = []
    with Arena.create(4, (3, SIZE, SIZE)) as arena:
        stage = load_stage(
            arena.spec,
            Preparation("images", SIZE, SIZE, rules),
            loaders=1,
            capacity=4,
            timeout_s=PATIENCE_S,
            image_timeout_s=PATIENCE_S,
            on_result=lambda _task, result: results.append(result),
            on_lost=lambda _task, lost: None,
            on_failure=lambda failure: None,
        )
        try:
            stage.start()
            stage.submit(Task(1, 4, LoadWork(Paths([str(p) for p in paths]), np.arange(4, dtype=np.int32))))
            stage.drain()
        finally:
            stage.stop()
        [result] = results
        bad = dict(result.bad)
        assert set(bad) == {1, 2}
        assert bad[1].startswith("damaged or cut short: decoder error -2 (")
        assert "LZW" in bad[1] or "code" in bad[1]
        assert bad[2] == "not enough memory to decode it"
        for number in (0, 3):
            expected = np.empty((3, SIZE, SIZE), dtype=np.int8)
            Preprocessor(SIZE, SIZE).decode_into(paths[number], expected)
            np.testing.assert_array_equal(arena.sample(number), expected)
    assert capfd.readouterr() == ("", "")


def jpeg(seed: int, width: int = 60, height: int = 50, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("compiled", [False, True])
def test_who_resizes_is_said_and_samples_are_the_same(compiled: bool, tmp_path: Path) -> None:
    if compiled:
        pytest.importorskip("numba", reason="Numba is not installed: pip install numba")
    path = tmp_path / "0.jpg"
    path.write_bytes(jpeg(1, 90, 70))
    expected = np.empty((3, SIZE, SIZE), dtype=np.int8)
    Preprocessor(SIZE, SIZE).decode_into(path, expected)
    with Arena.create(1, (3, SIZE, SIZE)) as arena:
        loader = Loader(arena.spec, Preparation("images", SIZE, SIZE, compiled=compiled))
        try:
            assert loader.note() == ("images, resized by Numba" if compiled else "images")
            loader.work(Task(1, 1, LoadWork((PathLocator(str(path)),), np.zeros(1, np.int32))), lambda place: None)
        finally:
            loader.close()
        np.testing.assert_array_equal(arena.sample(0), expected)


def test_files_are_left_for_the_gpu_or_become_samples_with_the_reason_why(tmp_path: Path) -> None:
    plain, long, large = jpeg(1), jpeg(3, 300, 300, quality=99), jpeg(4, 400, 300, quality=5)
    contents = (plain, jpeg(2, progressive=True), long, large, b"no image", plain)
    paths = [tmp_path / f"{i}.jpg" for i in range(len(contents))]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    rules = ImageRules(max_pixels=100_000)
    with Arena.create(8, (3, SIZE, SIZE), room=HEADER.itemsize + len(plain) + 100) as arena:
        loader = Loader(arena.spec, Preparation("images", SIZE, SIZE, rules, decode="gpu"))
        try:
            arena.lengths[:] = 7
            in_slot = arena.raw(6)
            in_slot[: len(plain)] = np.frombuffer(plain, np.uint8)
            locators = (*(PathLocator(str(p)) for p in paths), SlotLocator(len(plain)))
            work = LoadWork(locators, np.arange(7, dtype=np.int32), frozenset({5}))
            result = loader.work(Task(1, 7, work), lambda place: None)
        finally:
            loader.close()
        assert [place for place, _ in result.bad] == [3, 4]
        assert dict(result.ways) == {BY_GPU: 2, "progressive": 1, "more bytes than a slot holds": 1}
        assert result.left_bytes == 2 * len(plain)
        assert arena.lengths[:7].tolist() == [len(plain), 0, 0, 7, 7, 0, len(plain)]
        for slot in (0, 6):
            raw = arena.raw(slot).tobytes()
            assert raw[: HEADER.itemsize] == parse(plain)
            assert raw[HEADER.itemsize : HEADER.itemsize + len(plain)] == plain
        for slot in (1, 2, 5):
            expected = np.empty((3, SIZE, SIZE), dtype=np.int8)
            Preprocessor(SIZE, SIZE, rules).decode_into(paths[slot], expected)
            np.testing.assert_array_equal(arena.sample(slot), expected)


def test_a_file_for_which_memory_does_not_do_is_bad_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no slot holds: it is read whole, and only Pillow's memory is as much as the rules allow."""
    paths = [tmp_path / "large.jpg", tmp_path / "small.jpg"]
    for path, side in zip(paths, (300, 60), strict=True):
        path.write_bytes(jpeg(3, side, side))

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(os, "pread", no_memory)
    with Arena.create(2, (3, SIZE, SIZE), tmp_path, room=HEADER.itemsize + paths[1].stat().st_size) as arena:
        loader = Loader(arena.spec, Preparation("images", SIZE, SIZE, decode="gpu"))
        try:
            work = LoadWork(Paths([str(path) for path in paths]), np.arange(2, dtype=np.int32))
            result = loader.work(Task(1, 2, work), lambda place: None)
        finally:
            loader.close()
    assert result.bad == ((0, "not enough memory to read it"),)
    assert dict(result.ways) == {BY_GPU: 1}


def test_bytes_at_hand_that_are_too_many_are_bad_and_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoMemory:
        @staticmethod
        def tobytes() -> bytes:
            raise MemoryError

    attach = load.Segment.attach
    attached: list[Segment] = []

    def without_memory(path: str, size: int) -> Segment:
        attached.append(segment := attach(path, size))
        if size == 900:
            segment.bytes = NoMemory()  # type: ignore[assignment]
        return segment

    monkeypatch.setattr(load.Segment, "attach", without_memory)
    data = jpeg(3)
    with Arena.create(3, (3, SIZE, SIZE), tmp_path) as arena:
        segments = [Segment.create(size, "bytes", "", tmp_path) for size in (5000, 900, 3000)]
        segments[2].bytes[: len(data)] = np.frombuffer(data, np.uint8)
        loader = Loader(arena.spec, Preparation("images", SIZE, SIZE, ImageRules(max_bytes=3000)))
        try:
            locators = [SegmentLocator(segment.path, len(segment.bytes)) for segment in segments]
            result = loader.work(Task(1, 3, LoadWork(locators, np.arange(3, dtype=np.int32))), lambda place: None)
        finally:
            loader.close()
            for segment in segments:
                segment.close()
        assert dict(result.bad) == {
            0: "5000 bytes are more than --max-image-bytes 3000",
            1: "not enough memory to read it",
        }
        expected = np.empty((3, SIZE, SIZE), dtype=np.int8)
        Preprocessor(SIZE, SIZE).decode_bytes(data, "image", expected)
        np.testing.assert_array_equal(arena.sample(2), expected)
    assert [len(segment.bytes) for segment in attached] == [0, 0, 0], "closed"


def test_a_trace_says_on_which_node_a_loader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "whereabouts", lambda: ", node 1")
    with Arena.create(1, (3, SIZE, SIZE), tmp_path) as arena:
        loader = Loader(arena.spec, Preparation("images", SIZE, SIZE), traced=True, number=3)
        assert loader.tracer.to_records()[1] == "loader 3, node 1"
        loader.close()
