from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from int4core.errors import Int4CoreError
from int4core.tuning.autoconfig import (
    Autoconfig,
    AutoconfigError,
    dumps,
    key_of,
    layer_of,
    parse,
    read,
    write,
)
from tests.paths import SHARED, needs_shared

OURS = """\
# engine: int4core 3
# gpu: h200
# origin: measured
# batch 256, one run

conv1=2
layer1_residual1_ds_conv = 9   # the widest
# a remark between lines
layer4_residual3_conv3=0
fc=1
"""


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("conv1", "conv1"),
        ("fc", "fc"),
        ("layer1_residual1_conv1", "layer1_0_conv1"),
        ("layer3_residual6_conv2", "layer3_5_conv2"),
        ("layer3_residual36_conv3", "layer3_35_conv3"),
        ("layer2_residual1_ds_conv", "layer2_0_downsample_0"),
    ],
)
def test_keys_and_layers_name_each_other(key: str, layer: str) -> None:
    assert layer_of(key) == layer
    assert key_of(layer) == key


@pytest.mark.parametrize(
    "name",
    ["layer1_residual0_conv1", "layer0_residual1_conv1", "layer1_residual1_conv4", "layer01_residual1_conv1",
     "conv2", "layer1_residual1_conv1 ", "", "layer1_0_conv1"],
)  # fmt: skip
def test_what_is_no_key(name: str) -> None:
    assert layer_of(name) is None


@pytest.mark.parametrize("name", ["layer1_0_relu", "layer1_00_conv1", "avgpool", "layer1_0_downsample_1"])
def test_layers_without_a_kernel_have_no_key(name: str) -> None:
    assert key_of(name) is None


def test_parse_keeps_choice_metadata_and_notes() -> None:
    config = parse(OURS, "h200")
    assert config.kernels == {
        "conv1": 2,
        "layer1_residual1_ds_conv": 9,
        "layer4_residual3_conv3": 0,
        "fc": 1,
    }
    assert config.metadata == {"engine": "int4core 3", "gpu": "h200", "origin": "measured"}
    assert config.notes == ("batch 256, one run",)
    assert config.by_layer()["layer1_0_downsample_0"] == 9
    assert config.lines["fc"] == 10
    assert not config.foreign
    assert config.notice is None


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("conv1=1\nlayer9=2\n", 2, "unknown layer 'layer9'"),
        ("conv1\n", 1, "no `=`"),
        ("\n\nconv1=x\n", 3, "'x' is not a kernel number"),
        ("conv1=-1\n", 1, "'-1' is not a kernel number"),
        ("conv1=1.0\n", 1, "kernel number"),
        ("conv1=\n", 1, "kernel number"),
        ("conv1=１\n", 1, "kernel number"),
        ("conv1=1\nfc=2\nconv1=1\n", 3, "already set on line 1"),
        ("# gpu: a\n# GPU: b\nconv1=1\n", 2, "twice"),
        ("# only a comment\n", 0, "no layer"),
    ],
)
def test_a_bad_line_is_named(text: str, line: int, says: str) -> None:
    with pytest.raises(AutoconfigError) as caught:
        parse(text, "some/file")
    assert caught.value.file == "some/file"
    assert caught.value.line == line
    assert says in caught.value.why
    assert isinstance(caught.value, Int4CoreError)
    assert str(caught.value).startswith(f"some/file:{line}: " if line else "some/file: ")


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        config = parse(text)
    except AutoconfigError:
        return
    assert parse(dumps(config)).kernels == config.kernels


def test_validate_against_a_table_and_a_model() -> None:
    config = parse(OURS, "h200")
    layers = {"conv1", "fc", "layer1_0_downsample_0", "layer4_2_conv3"}
    config.validate(known_numbers=range(10), layers=layers)
    with pytest.raises(AutoconfigError, match=r"h200:7: .*=9: no such kernel here; known: 0-2, 5"):
        config.validate(known_numbers={0, 1, 2, 5})
    with pytest.raises(AutoconfigError, match=r"h200:9: .*no layer layer4_2_conv3"):
        config.validate(layers=layers - {"layer4_2_conv3"})
    per_layer = {layer: {number} for layer, number in config.by_layer().items()}
    config.validate(known_numbers=per_layer)
    with pytest.raises(AutoconfigError, match=r"fc=1: .*known: 7"):
        config.validate(known_numbers=per_layer | {"fc": {7}})
    assert config.missing(["conv1", "layer1_0_conv1", "avgpool"]) == ["layer1_0_conv1"]


def test_write_then_read_gives_the_same(tmp_path: Path) -> None:
    config = parse(OURS)
    path = tmp_path / "new" / "h200"
    write(path, config)
    again = read(path)
    assert (again.kernels, again.metadata, again.notes) == (config.kernels, config.metadata, config.notes)
    assert [p.name for p in path.parent.iterdir()] == ["h200"]


def test_write_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for config in (
        Autoconfig({"conv1": 1}, {"gpu": "a\nfc=2"}),
        Autoconfig({"conv1": 1}, notes=("engine: mine",)),
        Autoconfig({"nothing": 1}),
        Autoconfig({"conv1": -1}),
    ):
        with pytest.raises(AutoconfigError):
            write(path, config)
    assert not path.exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AutoconfigError, match="none: cannot be read"):
        read(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"conv1=1\n\xff\xfe")
    with pytest.raises(AutoconfigError, match=r"binary:2: not UTF-8"):
        read(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20 | 1))
    with pytest.raises(AutoconfigError, match=r"is larger than 1,048,576 bytes: this is no autoconfig file$"):
        read(tmp_path / "large")


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(AutoconfigError, match=r"file: is not a regular file: this is no autoconfig file$"):
        read(path)


@pytest.mark.parametrize(
    "line",
    [
        "# gpu: " + "x" * 5000,
        "# note\x1b[2J",
        "conv1" * 500 + "=1",
        "conv1=" + "9" * 5000,
        "x" * 900,
        "conv1=" + "x" * 900,
        "x" * 900 + "=1",
        "# " + "x" * 900 + ": a\n# " + "x" * 900 + ": a",
    ],
    ids=lambda line: line[:12],
)
def test_a_hostile_line_is_quoted_in_part_and_harmlessly(line: str) -> None:
    with pytest.raises(AutoconfigError) as caught:
        parse(f"{line}\nconv1=1\n", "file")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@needs_shared
@pytest.mark.parametrize("name", ["autoconfig_t4", "autoconfig_rtx"])
def test_the_submission_s_files_are_read_and_marked_foreign(name: str) -> None:
    path = SHARED / "published" / name
    config = read(path)
    assert len(config.kernels) == 52
    assert config.foreign
    assert "another" in str(config.notice) or "not this one's" in str(config.notice)
    model_files = {p.name for p in (SHARED / "model-v0.5" / "model").iterdir()}
    config.validate(layers=model_files)
    assert dumps(config) == path.read_text()
