"""Folders made to do harm: paths that lead out, pipes, devices, sizes that are not there, and fuzz."""

from __future__ import annotations

import contextlib
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from int4core.errors import ModelError
from int4core.format import files
from int4core.format.schema import SCHEMA
from int4core.format.text import parse_layer
from int4core.model import Model
from int4core.random_model import random_model
from tests.int4core.model_folders import edit, refused
from tests.paths import SHARED, needs_shared

OVERHEAD = 1 << 20
"""Bytes that any load may take besides: parsed text and layer objects of the small test models."""


FIXED = 128 << 10
"""NumPy's buffer for converting sums, which no model's size changes."""


def peak(load: Callable[[], Any]) -> int:
    """The most memory that `load` allocates, whether it succeeds or not.

    The lesser of two loads: in one, a table of the interpreter may grow that has nothing to do with it, such as that of
    interned strings, by megabytes.
    """
    return min(_peak(load), _peak(load))


def _peak(load: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelError):
            load()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("model/npdata/../../secret", "is not a plain path"),
            ("../secret", "leaves the model folder"),
            ("model/./npdata/conv1.bias", "is not a plain path"),
            ("model//npdata/conv1.bias", "is not a plain path"),
            ("model", "is not a plain path"),
            ("", "is not a plain path"),
            ("model\\npdata\\conv1.bias", "is not a plain path"),
            ("/etc/hostname", "is absolute"),
            ("other/secret", "leaves the model folder"),
            ("npdata/conv1.bias", "leaves the model folder"),
            ("model/npdata", "is not a regular file"),
            ("model/npdata/none", "No such file"),
            ("model/npdata/" + "a" * 5000, "File name too long"),
            ("model/conv1/x", "Not a directory"),
            ("model/npdata/conv1.weight", "has 588 bytes"),
        ],
    )
    def test_a_data_path_stays_in_the_folder(self, folder: Path, path: str, why: str) -> None:
        (folder.parent / "secret").write_bytes(bytes(8))
        (folder.parent / "other").mkdir()
        (folder.parent / "other" / "secret").write_bytes(bytes(8))
        line = edit(folder / "conv1", "!model/npdata/conv1.bias", "!" + path)
        refused(folder, "conv1", line, why)

    def test_a_data_link_out_is_refused(self, folder: Path) -> None:
        data = folder / "npdata" / "conv1.bias"
        data.rename(folder.parent / "bias")
        data.symlink_to(folder.parent / "bias")
        refused(folder, "conv1", 11, "is a link that leaves the model folder")

    def test_a_data_folder_link_out_is_refused(self, folder: Path) -> None:
        (folder / "npdata").rename(folder.parent / "elsewhere")
        (folder / "npdata").symlink_to(folder.parent / "elsewhere")
        refused(folder, "conv1", 11, "is a link that leaves the model folder")

    @pytest.mark.parametrize("name", ["model", "conv1", "layer1", "layer1_0", "layer1_0_conv1"])
    def test_a_layer_link_out_is_refused(self, folder: Path, name: str) -> None:
        (folder / name).rename(folder.parent / "outside")
        (folder / name).symlink_to("../outside")
        refused(folder, name, 0, "is a link that leaves the model folder")

    def test_a_folder_whose_name_only_begins_alike_is_outside(self, folder: Path) -> None:
        (folder.parent / "model2").mkdir()
        (folder / "relu").rename(folder.parent / "model2" / "relu")
        (folder / "relu").symlink_to("../model2/relu")
        refused(folder, "relu", 0, "is a link that leaves the model folder")

    def test_links_in_a_circle_are_refused(self, folder: Path) -> None:
        (folder / "relu").unlink()
        (folder / "relu").symlink_to("relu")
        refused(folder, "relu", 0, "cannot be read")

    def test_one_file_cannot_be_two_tensors(self, folder: Path) -> None:
        line = edit(folder / "quantize1", "npdata/quantize1.requant_factor", "npdata/conv1.bias")
        refused(folder, "quantize1", line, "is one file with 'npdata/conv1.bias'")

    def test_one_file_under_two_names_cannot_be_two_tensors(self, folder: Path) -> None:
        (folder / "npdata" / "quantize1.requant_factor").unlink()
        os.link(folder / "npdata" / "conv1.bias", folder / "npdata" / "quantize1.requant_factor")
        refused(folder, "quantize1", 7, "is one file with 'npdata/conv1.bias'")

    @pytest.mark.parametrize("path", ["model/model", "none", "nul\0", "a" * 5000])
    def test_the_model_itself_must_be_a_folder(self, folder: Path, path: str) -> None:
        with pytest.raises(ModelError, match="a model is a folder with a file named model"):
            Model.load(f"{folder.parent}/{path}")

    def test_the_folder_above_is_told_apart(self, folder: Path) -> None:
        with pytest.raises(ModelError) as caught:
            Model.load(folder.parent)
        assert caught.value.file == str(folder.parent)
        assert caught.value.why == f"is not a model itself; load {folder}"


class TestMessages:
    """A file's text is quoted in part, however long it is."""

    @pytest.mark.parametrize(
        ("file", "old", "new"),
        [
            ("model", "compute_mode=s8f32", "compute_mode=" + "s8" * 4000),
            ("conv1", "compute_mode=s8s8s32", "compute_mode=" + "s8" * 4000),
            ("conv1", "Conv2d", "C" * 8000),
            ("conv1", "groups=1", "groups=" + "1" * 8000),
            ("conv1", "groups=1", "g" * 8000 + "=1"),
            ("conv1", "groups=1", "g" * 8000),
            ("conv1", "s8,4:4 3 7 7", "s8,4:" + "4 " * 4000 + "4"),
            ("conv1", "!model/npdata/conv1.bias", "!" + "model/" * 1000),
            ("quantize1", "npdata/quantize1.requant_factor", "npdata/" + "long/" * 100 + "factor"),
        ],
        ids=lambda text: text[:20],
    )
    def test_no_message_is_long(self, folder: Path, file: str, old: str, new: str) -> None:
        deep = folder / "npdata" / "/".join(["long"] * 100)
        deep.mkdir(parents=True)
        # One file under two names, so that the second tensor's error says the first one's name.
        os.link(folder / "npdata" / "conv1.bias", deep / "factor")
        edit(folder / file, old, new)
        if file == "quantize1":
            edit(folder / "conv1", "npdata/conv1.bias", "npdata/" + "long/" * 100 + "factor")
        with pytest.raises(ModelError) as caught:
            Model.load(folder)
        assert caught.value.file == str(folder / file)
        assert caught.value.why.isprintable()
        assert len(caught.value.why) < 300


class TestSpecialFiles:
    """None of them may block: the suite's time limit would show it."""

    @pytest.mark.parametrize(("name", "error"), [("relu", ("relu", 0)), ("npdata/conv1.bias", ("conv1", 11))])
    @pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
    def test_only_regular_files_are_read(
        self, folder: Path, name: str, error: tuple[str, int], kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / name).unlink()
        why = "is not a regular file"
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        elif kind == "device":
            (folder / name).symlink_to("/dev/zero")
            why = "leaves the model folder"
        else:
            monkeypatch.chdir(folder)  # the name of a socket is short
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(name)
        refused(folder, *error, why)


class TestMemory:
    @needs_shared
    def test_the_published_model_takes_less_than_4_times_its_files(self) -> None:
        published = SHARED / "model-v0.5" / "model"
        size = sum(f.stat().st_size for f in published.rglob("*") if f.is_file())
        assert peak(lambda: Model.load(published)) < 2.5 * size

    @pytest.mark.parametrize("shape", [{"width": 4}, {"width": 16}, {"blocks": (3, 8, 36, 3), "width": 8}])
    def test_a_small_model_takes_less_than_4_times_its_files(self, tmp_path: Path, shape: dict[str, Any]) -> None:
        random_model(**shape).save(tmp_path / "model")
        Model.load(tmp_path / "model")  # compiles and caches patterns, once for all models
        size = sum(f.stat().st_size for f in (tmp_path / "model").rglob("*") if f.is_file())
        assert peak(lambda: Model.load(tmp_path / "model")) < 4 * size + FIXED

    @pytest.mark.parametrize(
        "shape", ["2147483647 2147483647 2147483647 2147483647", "1 1 1 2147483647", "4 3 7 2147483647"]
    )
    def test_a_declared_size_allocates_nothing(self, folder: Path, shape: str) -> None:
        line = edit(folder / "conv1", "s8,4:4 3 7 7", f"s8,4:{shape}")
        assert peak(lambda: Model.load(folder)) < OVERHEAD
        refused(folder, "conv1", line + 1, "has 588 bytes")

    def test_a_sparse_file_allocates_nothing(self, folder: Path) -> None:
        line = edit(folder / "conv1", "s8,4:4 3 7 7", "s8,4:4 1024 1024 1024")
        os.truncate(folder / "npdata" / "conv1.weight", 4 << 30)
        assert peak(lambda: Model.load(folder)) < OVERHEAD
        refused(folder, "conv1", line + 1, "past 1024 MiB")

    def test_the_limit_is_on_all_data_together(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "DATA_LIMIT", 8 + 588 + 7)
        refused(folder, "quantize1", 7, "the model's data past")

    def test_a_huge_text_is_not_read(self, folder: Path) -> None:
        os.truncate(folder / "relu", 1 << 40)
        assert peak(lambda: Model.load(folder)) < OVERHEAD
        refused(folder, "relu", 0, "a layer file has at most 16384")

    def test_no_memory_is_a_model_error(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(files.np, "empty", exhausted)
        with pytest.raises(ModelError, match="not enough memory"):
            Model.load(folder)

    def test_children_that_are_not_there_cost_nothing(self, folder: Path) -> None:
        edit(folder / "layer4", "children_count=1", "children_count=1000")
        assert peak(lambda: Model.load(folder)) < OVERHEAD
        refused(folder, "layer4_1", 0, "children_count of layer4 asks for it")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    random_model(blocks=(2, 1, 1, 1), width=1, classes=3, pool=1).save(folder)
    (folder.parent / "outside").write_bytes(bytes(64))
    return folder


VALUES = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["", "True", "False", "2:1 1", "2:0 0", "1:1", "s4,4:1 1 1 1", "u16,4:1 4 1 1", "nan"]),
    st.sampled_from(["s8s8s32", "u4s4s32", "u31u16u4", "s32u16s8", "s8u16s32", "u4u16u31", "f64", "u4s4"]),
    st.lists(st.integers(0, 2**33), max_size=6).map(lambda d: f"s8,{len(d)}:{' '.join(map(str, d))}"),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
KEYS = st.sampled_from(sorted({key for schema in SCHEMA.values() for key in schema} | {"", "name"}))


def change_bytes(draw: Any, file: Path) -> None:
    """Replace, delete, double or insert a run of bytes anywhere."""
    data = file.read_bytes()
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(len(data), start + 4)))
    new = draw(st.one_of(st.just(b""), st.just(2 * data[start:stop]), st.binary(max_size=4)))
    file.write_bytes(data[:start] + new + data[stop:])


def change_line(draw: Any, file: Path) -> None:
    """Another value, another key, a line less, twice, or moved; in any file, data files included."""
    lines = file.read_bytes().split(b"\r\n")
    i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    key = lines[i].partition(b"=")[0]
    how = draw(st.sampled_from(["value", "key", "path", "drop", "copy", "swap"]))
    if how == "value":
        lines[i] = key + b"=" + draw(VALUES).encode()
    elif how == "key":
        lines[i] = draw(KEYS).encode() + b"=" + draw(VALUES).encode()
    elif how == "path":
        lines[i] = b"!" + draw(st.text(max_size=6)).encode("utf-8", "surrogatepass")
    elif how == "drop":
        del lines[i]
    elif how == "copy":
        lines.insert(j, lines[i])
    else:
        lines[i], lines[j] = lines[j], lines[i]
    file.write_bytes(b"\r\n".join(lines))


def change_size(draw: Any, file: Path) -> None:
    os.truncate(file, draw(st.integers(0, 2 * file.stat().st_size + 2)))


def fill(draw: Any, file: Path) -> None:
    """The same size, all bytes alike: zero scales, extreme weights, factors of 65535."""
    file.write_bytes(bytes([draw(st.sampled_from([0, 0x7F, 0x80, 0x88, 0xFF]))]) * file.stat().st_size)


def replace_file(draw: Any, file: Path) -> None:
    how = draw(st.sampled_from(["gone", "folder", "pipe", "link", "outside", "root", "loop"]))
    others = sorted(p for p in file.parent.iterdir() if p != file)
    other = draw(st.sampled_from(others))
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how != "gone":
        targets = {"link": other, "outside": "../outside", "root": "/", "loop": file.name}
        file.symlink_to(targets[how])


def swap_names(draw: Any, file: Path) -> None:
    others = sorted(p for p in file.parent.iterdir() if p != file and p.is_file())
    other = draw(st.sampled_from(others))
    spare = file.with_name("spare")
    file.rename(spare)
    other.rename(file)
    spare.rename(other)


CHANGES = [change_bytes, change_line, change_line, change_size, fill, replace_file, swap_names]


class TestFuzz:
    @settings(
        max_examples=200,
        deadline=30_000,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_a_spoiled_folder_loads_or_is_a_model_error(self, victim: Path, data: st.DataObject) -> None:
        pristine = {p: p.read_bytes() for p in sorted(victim.rglob("*")) if p.is_file()}
        texts = [p for p in pristine if p.parent == victim]
        tensors = [p for p in pristine if p.parent != victim]
        try:
            for _ in range(data.draw(st.integers(1, 3))):
                file = data.draw(st.sampled_from(data.draw(st.sampled_from([texts, tensors]))))
                if file.is_file() and not file.is_symlink():
                    data.draw(st.sampled_from(CHANGES))(data.draw, file)
            with contextlib.suppress(ModelError):
                model = Model.load(victim)
                model.save(victim.with_name("again"))
                Model.load(victim.with_name("again"))
        finally:
            restore(pristine)

    @settings(max_examples=300, deadline=30_000)
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda s: s.encode("utf-8"))))
    def test_any_bytes_parse_or_are_a_model_error(self, data: bytes) -> None:
        for start in (b"", b"Conv2d\r\n", b"Scale\n"):
            with contextlib.suppress(ModelError):
                parse_layer(Path("layer"), start + data)


def restore(pristine: dict[Path, bytes]) -> None:
    for path, content in pristine.items():
        if path.is_symlink() or not path.is_file():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        elif path.read_bytes() == content:
            continue
        path.write_bytes(content)
