"""Which file is which sample: folders, map files, and everything that may be wrong with them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.samples.library import SampleLibrary
from tests.paths import SHARED, needs_shared


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_map(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def names(library: SampleLibrary) -> list[str]:
    return [p.name for p in library.paths]


def error(folder: Path, map_file: Path | None = None, count: int | None = None) -> str:
    with pytest.raises(PipelineError) as caught:
        SampleLibrary.from_images(folder, map_file, count)
    return str(caught.value)


def test_a_folder_without_a_map(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPEG", "a.png", "c.txt", ".hidden.jpg", "c.jpg", "sub/d.jpg")
    library = SampleLibrary.from_images(tmp_path)
    assert names(library) == ["a.png", "b.JPEG", "c.jpg"]
    assert library.labels is None
    assert library.kind == "images"
    assert len(library) == 3


def test_what_of_a_folder_is_ignored_is_said(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.jpg", *(f"{n}.heic" for n in range(3)), "x.HEIC", "b.mp4", "README", ".DS_Store", "s/c.jpg", "t/d"
    )
    (tmp_path / "e.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "f.jpg")
    library = SampleLibrary.from_images(tmp_path)
    assert names(library) == ["a.jpg"]
    line = "ignored 9 files (.heic 4, .mp4 1, broken link 1, hidden 1, no ending 1, ...), 2 folders"
    assert library.notices == (f"{tmp_path}: {line}",)
    (tmp_path / "a.jpg").unlink()
    assert error(tmp_path).endswith(f".webp); {line}")
    (tmp_path / "clean").mkdir()
    assert SampleLibrary.from_images(touch(tmp_path / "clean", "a.jpg")).notices == ()


def test_recursive_takes_the_folders_below_too(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.jpg", "a/deep/y.png", "c/x.txt", ".git/w.jpg", "c/map.txt")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    library = SampleLibrary.from_images(tmp_path, recursive=True)
    assert library.names == ("a/deep/y.png", "a/z.jpg", "b.jpg")
    assert library.paths == tuple(tmp_path / name for name in library.names)
    assert library.notices == (f"{tmp_path}: ignored 2 files (.txt 2), 2 folders",)
    write_map(tmp_path / "map.txt", "b.jpg 1\n")
    library = SampleLibrary.from_images(tmp_path, recursive=True)
    assert len(library) == 3
    assert library.labels is None
    assert library.notices[0].startswith(f"{tmp_path / 'map.txt'} is not used: --recursive takes all images")


def test_which_map_is_used_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "notes.txt")
    found = write_map(tmp_path / "map.txt", "a.jpg 1\n")
    assert SampleLibrary.from_images(tmp_path).notices == (
        f"samples as {found} lists them, which was found there; -m names another map",
        f"{tmp_path}: ignored 2 images that the map does not list",
    )
    other = write_map(tmp_path / "other", "a.jpg 1\nb.jpg 2\nc.jpg 3\n")
    # What is beyond the count is listed all the same.
    assert SampleLibrary.from_images(tmp_path, other, count=1).notices == (f"samples as {other} lists them",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Streets of the town, from north to south\n", "map.txt:1: 8 fields"),
        ("north\nsouth\n", "none of its names is one of the images"),
        ("/etc/none 1\n", "does not stay within"),
        ("", "lists no samples"),
    ],
)
def test_a_file_that_is_no_map_is_no_error_when_nobody_asked_for_it(text: str, why: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    path = write_map(tmp_path / "map.txt", text)
    library = SampleLibrary.from_images(tmp_path)
    assert names(library) == ["a.jpg", "b.jpg"]
    assert library.labels is None
    assert library.notices[0].startswith(f"{path} is not used, as it is no map: ")
    assert why in library.notices[0]
    error(tmp_path, path)
    # The next one may be one.
    write_map(tmp_path / "val_map.txt", "b.jpg 1\n")
    assert names(SampleLibrary.from_images(tmp_path)) == ["b.jpg"]


@pytest.mark.parametrize("text", ["a.jpg 1\nb.jpg two\n", "a.jpg 1\nno.jpg 2\n", "x y z\na.jpg 1\n", "a.jpg\t1\t2\n"])
def test_a_map_with_a_mistake_is_an_error_though_nobody_asked_for_it(text: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    write_map(tmp_path / "map.txt", text)
    assert "map.txt" in error(tmp_path)


def test_labels_are_classes_of_the_model(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")

    def refused(text: str, count: int | None = None) -> str:
        with pytest.raises(PipelineError) as caught:
            SampleLibrary.from_images(tmp_path, write_map(tmp_path / "m", text), count, classes=10)
        return str(caught.value)

    where = f"{tmp_path / 'm'}:3: label 10 is no class of the model, which are 0 to 9"
    assert refused("a.jpg 0\nb.jpg 9\nc.jpg 10\n") == where
    assert refused("a.jpg 0\nb.jpg 9\nc.jpg 10\n", count=1) == where
    hint = "; all labels fit if they are counted from 1: subtract 1 from each"
    assert refused("a.jpg 1\nb.jpg 9\nc.jpg 10\n") == where + hint
    assert refused("a.jpg 1\nb.jpg 11\nc.jpg 10\n").endswith(":2: label 11 is no class of the model, which are 0 to 9")
    good = write_map(tmp_path / "m", "a.jpg 0\nb.jpg 9\nc.jpg 1\n")
    assert len(SampleLibrary.from_images(tmp_path, good, classes=10)) == 3


@pytest.mark.timeout(120)  # a FIFO waits for a writer, /dev/zero never ends
def test_maps_are_regular_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert error(tmp_path, path) == f"{path}: the map file cannot be read: is not a regular file"


def test_a_map_gives_the_order_and_the_labels(tmp_path: Path) -> None:
    touch(tmp_path / "i", "a.jpg", "b.jpg", "sub/c.jpg", "un listed.jpg", "two words.jpg")
    text = "b.jpg\t7\nsub/c.jpg   999\r\n\na.jpg 0\ntwo words.jpg\t 3 \n"
    library = SampleLibrary.from_images(tmp_path / "i", write_map(tmp_path / "m", text))
    assert names(library) == ["b.jpg", "c.jpg", "a.jpg", "two words.jpg"]
    assert library.labels is not None
    assert library.labels.dtype == np.int32
    assert library.labels.tolist() == [7, 999, 0, 3]
    assert not library.labels.flags.writeable


def test_a_map_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    library = SampleLibrary.from_images(tmp_path, write_map(tmp_path / "m", "b.jpg\na.jpg"))
    assert names(library) == ["b.jpg", "a.jpg"]
    assert library.labels is None


def test_a_map_in_the_folder_is_used_unless_another_is_given(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    write_map(tmp_path / "val_map.txt", "b.jpg 1\n")
    assert names(SampleLibrary.from_images(tmp_path)) == ["b.jpg"]
    write_map(tmp_path / "map.txt", "a.jpg 2\n")
    assert names(SampleLibrary.from_images(tmp_path)) == ["a.jpg"]
    other = write_map(tmp_path / "other", "a.jpg 1\nb.jpg 2\n")
    assert names(SampleLibrary.from_images(tmp_path, other)) == ["a.jpg", "b.jpg"]


def test_count_keeps_the_first(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert names(SampleLibrary.from_images(tmp_path, count=2)) == ["a.jpg", "b.jpg"]
    # What lies beyond the count need not be there.
    map_file = write_map(tmp_path / "m", "c.jpg 5\nb.jpg 6\nnone.jpg 7\n")
    library = SampleLibrary.from_images(tmp_path, map_file, count=2)
    assert library.labels is not None
    assert library.labels.tolist() == [5, 6]
    assert "4 samples were asked for; there are 3" in error(tmp_path, count=4)
    assert "at least one" in error(tmp_path, count=0)


def test_subset(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    library = SampleLibrary.from_images(tmp_path, write_map(tmp_path / "m", "a.jpg 1\nb.jpg 2\nc.jpg 3"))
    part = library.subset(np.array([2, 0]))
    assert names(part) == ["c.jpg", "a.jpg"]
    assert part.labels is not None
    assert part.labels.tolist() == [3, 1]
    assert part.kind == "images"
    assert part.names == ("c.jpg", "a.jpg")
    with pytest.raises(PipelineError, match="at least one sample"):
        library.subset([])


def test_the_tensor_that_an_images_name_stands_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy", "a.JPEG.npy", "b.JPEG.npy", "c.bin", "d.npy")
    text = "a.JPEG 1\nb.JPEG 2\nc.bin 3\nd.npy 4\n"
    library = SampleLibrary.from_tensors(tmp_path, write_map(tmp_path / "m", text))
    assert names(library) == ["a.npy", "b.JPEG.npy", "c.bin", "d.npy"]
    assert library.kind == "tensors"
    assert names(SampleLibrary.from_tensors(tmp_path)) == ["a.JPEG.npy", "a.npy", "b.JPEG.npy", "d.npy"]


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy")
    map_file = write_map(tmp_path / "m", "a.png 1\na.jpg 1\n")
    with pytest.raises(PipelineError, match=r"m:2: a.jpg is .*a\.npy, as on line 1"):
        SampleLibrary.from_tensors(tmp_path, map_file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1\nb.jpg 2 3\n", "m:2: 3 fields"),
        ("a.jpg\t1\t2\n", "m:1: 3 fields"),
        ("a.jpg 1\nb.jpg two\n", "m:2: label 'two' is not a class number"),
        ("a.jpg -1\n", "m:1: label '-1'"),
        ("a.jpg 1.0\n", "m:1: label '1.0'"),
        ("a.jpg 99999999999\n", "m:1: label"),
        ("a.jpg\t\n", "are not"),
        ("a.jpg 1\nb.jpg\n", "m:2: no label, unlike"),
        ("a.jpg\nb.jpg 1\n", "m:2: a label, unlike"),
        ("a.jpg 1\nb.jpg 1\na.jpg 1\n", "m:3: a.jpg is on line 1 already"),
        ("", "lists no samples"),
        ("\n \n", "lists no samples"),
        ("../a.jpg 1\n", "m:1: '../a.jpg' does not stay within"),
        ("sub/../../a.jpg 1\n", "does not stay within"),
        ("/etc/none 1\n", "does not stay within"),
        ("..\\a.jpg 1\n", "does not stay within"),
        ("C:\\a.jpg 1\n", "does not stay within"),
        ("a\0.jpg 1\n", "does not stay within"),
        ("./. 1\n", "does not stay within"),
        (f"{'x' * 300}.jpg 1\n", "1 of 1 images are not in"),
        ("d/" * 3000 + "a.jpg 1\n", "1 of 1 images are not in"),
        ("a.jpg 1\n" + "\0" * 20_000, "m:2: 20,000 characters; a line is NAME"),
    ],
)
def test_bad_maps_name_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / "images", "b.jpg")
    assert message in error(folder, write_map(tmp_path / "m", text))


def test_files_that_are_missing_are_counted_and_the_first_named(tmp_path: Path) -> None:
    folder = touch(tmp_path / "images", "3.jpg")
    (folder / "9.jpg").mkdir()
    text = "".join(f"{n}.jpg {n}\n" for n in range(10))
    message = error(folder, write_map(tmp_path / "m", text))
    assert f"m: 9 of 10 images are not in {folder}: 0.jpg (line 1), 1.jpg (line 2), 2.jpg" in message
    assert "7.jpg" not in message
    assert message.endswith(", ...")


def test_folders_and_maps_that_are_not_there(tmp_path: Path) -> None:
    file = touch(tmp_path, "a.jpg") / "a.jpg"
    assert error(tmp_path / "none") == f"{tmp_path / 'none'}: there is no such folder"
    assert "a file, where a folder" in error(file)
    assert "there is no such map file" in error(tmp_path, tmp_path / "none.txt")
    assert "cannot be read" in error(tmp_path, tmp_path)
    (tmp_path / "m").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in error(tmp_path, tmp_path / "m")
    (tmp_path / "empty").mkdir()
    assert "no images here (.bmp, " in error(tmp_path / "empty")


def test_it_travels_to_another_process(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    library = SampleLibrary.from_images(tmp_path, write_map(tmp_path / "m", "a.jpg 4"))
    again = pickle.loads(pickle.dumps(library))
    assert again.paths == library.paths
    assert again.labels.tolist() == [4]
    assert again.kind == library.kind


@needs_shared
def test_the_reference_folders() -> None:
    library = SampleLibrary.from_images(SHARED / "imagenet" / "val227")
    assert len(library) == 325
    assert library.labels is not None
    assert library.labels[:3].tolist() == [472, 625, 397]
    assert len(SampleLibrary.from_images(SHARED / "imagenet" / "sample200", count=10)) == 10


@needs_shared
def test_the_published_map(tmp_path: Path) -> None:
    from pipeline.samples.library import read_map

    entries = read_map(SHARED / "published" / "val_map.txt")
    assert len(entries) == 50_000
    assert all(e.label is not None and 0 <= e.label < 1000 for e in entries)


def test_a_map_that_never_ends_is_not_begun(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(PipelineError, match=f"{path}.*not a regular file"):
            SampleLibrary.from_images(tmp_path, path)
