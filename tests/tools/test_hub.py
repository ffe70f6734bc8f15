from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from int4core.errors import ModelError
from int4core.model import Model
from int4core.random_model import random_model
from pipeline.samples.classes import read_classes
from tests.paths import ROOT, SHARED, needs_shared
from tools import hub
from tools.hub import main


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An odd number of s4 values in one layer: half a byte of its nibbles is unused."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    random_model(blocks=(2, 1, 1, 1), width=3, classes=3, pool=2).save(folder)
    (folder / "classes.txt").write_text("tench\nSäge\nshark, white\n", encoding="utf-8")
    (folder / "README.md").write_text("# Ours\n\n61.5 % top-1 on 10,000 images.\n")
    return folder


@pytest.fixture
def packed(tiny: Path, tmp_path: Path) -> Path:
    assert main(["pack", str(tiny), str(tmp_path / "packed")]) == 0
    return tmp_path / "packed"


def test_pack_load_save_gives_the_same_folder(tiny: Path, packed: Path, tmp_path: Path) -> None:
    model = Model.load(packed)
    model.save(tmp_path / "back")
    kept = {name: data for name, data in files_of(tiny).items() if name not in ("classes.txt", "README.md")}
    assert files_of(tmp_path / "back") == kept
    assert model.digest == Model.load(tiny).digest
    assert files_of(packed).keys() == {"config.json", "model.safetensors", "README.md", "classes.txt"}
    assert read_classes(None, packed, 3) == ("tench", "Säge", "shark, white")


def test_a_pack_that_is_killed_between_two_files_is_no_mixture_of_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    out, write = tmp_path / "out", hub.write_atomically
    for seed in (1, 2):
        random_model(width=2, classes=3, pool=1, seed=seed).save(tmp_path / str(seed))
    assert main(["pack", str(tmp_path / "1"), str(out)]) == 0

    def killed(path: Path, data: bytes) -> None:
        if path.name == "model.safetensors":
            raise Killed
        write(path, data)

    monkeypatch.setattr(hub, "write_atomically", killed)
    with pytest.raises(Killed):
        main(["pack", str(tmp_path / "2"), str(out)])
    with pytest.raises(ModelError, match=r"model\.safetensors: is not the file that config\.json was written with"):
        Model.load(out)
    monkeypatch.undo()
    assert main(["pack", str(tmp_path / "2"), str(out)]) == 0
    assert Model.load(out).digest == Model.load(tmp_path / "2").digest


@pytest.fixture
def unsigned(packed: Path) -> Path:
    """As of an earlier version, or of somebody who knows what to say: nothing tells that the tensors are others."""
    config_with(lambda config: config.pop("tensors_sha256"))(packed)
    return packed


def test_a_folder_of_an_earlier_version_does_not_say_which_tensors_it_is_of(tiny: Path, unsigned: Path) -> None:
    assert Model.load(unsigned).digest == Model.load(tiny).digest


def test_the_names_of_an_older_models_classes_go_with_it(packed: Path, tmp_path: Path) -> None:
    random_model(width=2, classes=3, pool=1).save(tmp_path / "nameless")
    assert main(["pack", str(tmp_path / "nameless"), str(packed)]) == 0
    assert read_classes(None, packed, 3) is None


def test_basic_blocks_come_back_too(tmp_path: Path) -> None:
    random_model(width=3, classes=3, pool=1, basic=True).save(tmp_path / "model")
    assert main(["pack", str(tmp_path / "model"), str(tmp_path / "packed")]) == 0
    Model.load(tmp_path / "packed").save(tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "model")
    assert "4 basic blocks" in (tmp_path / "packed" / "README.md").read_text(encoding="utf-8")


@needs_shared
def test_the_published_model_comes_back_byte_for_byte(tmp_path: Path) -> None:
    folder = SHARED / "model-v0.5" / "model"
    assert main(["pack", str(folder), str(tmp_path / "packed")]) == 0
    Model.load(tmp_path / "packed").save(tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)
    assert (tmp_path / "packed" / "model.safetensors").stat().st_size < 14.5e6


def test_another_reader_finds_the_tensors(tiny: Path, packed: Path) -> None:
    tensors = safetensors.numpy.load_file(packed / "model.safetensors")
    net = Model.load(tiny).network
    np.testing.assert_array_equal(tensors["conv1.weight"], net.conv1.weight)
    np.testing.assert_array_equal(tensors["quantize1.requant_factor"].ravel(), net.quantize1.requant_factor)
    nibbles = tensors["layer1_0_conv1.weight"]
    weight = net.blocks[0].conv1.weight.ravel()
    assert weight.size == 9
    unpacked = np.stack([nibbles & 15, nibbles >> 4], axis=1).ravel()[:9].astype(np.int8)
    np.testing.assert_array_equal(np.where(unpacked > 7, unpacked - 16, unpacked), weight)


def test_the_card_says_what_was_measured(tiny: Path, packed: Path, tmp_path: Path) -> None:
    text = (packed / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: int4core\n")
    assert "61.5 % top-1 on 10,000 images." in text
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"]["2"] == "shark, white"
    assert config["architecture"]["blocks"] == [2, 1, 1, 1]
    random_model(width=2, classes=3, pool=1).save(tmp_path / "bare")
    said = "70.1 % of 500 images, on the CPU"
    for extra, wanted in (([], "Not measured"), (["--accuracy", said], said)):
        assert main(["pack", str(tmp_path / "bare"), str(tmp_path / "card"), *extra]) == 0
        assert wanted in (tmp_path / "card" / "README.md").read_text(encoding="utf-8")


def config_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        change(config)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return apply


def tensors_with(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    return apply


def layer(name: str, **values: object) -> Callable[[Path], None]:
    return config_with(lambda config: config["layers"][name].update(values))


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def many_tensors(folder: Path) -> None:
    """A tensor takes a line of the header, and many times that in memory."""
    header = b"{" + b",".join(b'"%05d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(100))
    header += b" " * (19_000_000 - len(header)) + b"}"
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: is not JSON"),
        (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), "config.json: is not JSON"),
        (config_with(lambda c: c.update(model_type="bert")), "its model_type must be int4core-resnet"),
        (config_with(lambda c: c.update(tensors=[])), "has no declarations of tensors"),
        (config_with(lambda c: c.update(layers=[])), "its layers are not an object"),
        (config_with(lambda c: c["layers"].pop("fc")), "layer 'fc': is not there"),
        (config_with(lambda c: c["layers"].update(extra={"type": "ReLU"})), "'extra' is no layer of the network"),
        (config_with(lambda c: c["tensors"].update({"fc.bias": 3})), "tensor 'fc.bias': '3' is wrong"),
        (
            config_with(lambda c: c["tensors"].update({"fc.bias": "s32,1:9999999"})),
            "tensor 'fc.bias' is int32 of shape '(3,)'",
        ),
        (config_with(lambda c: c["tensors"].pop("fc.bias")), "config.json: lacks the tensor 'fc.bias'"),
        (layer("conv1", stride=[9, 9]), "layer 'conv1': stride=9 is out of range"),
        (layer("conv1", stride={"a": 1}), "layer 'conv1': stride="),
        (layer("conv1", groups=1.5), "layer 'conv1': groups='1.5' is wrong"),
        (layer("conv1", groups="1\r\nx=2"), "layer 'conv1': has a value that is not plain text"),
        (layer("conv1", **{"!model/npdata/fc.weight": 1}), "layer 'conv1': has a key"),
        (layer("conv1", compute_mode="u4s4s32" * 9999), "layer 'conv1': has 7"),
        (layer("layer1", children_count=10**6), "layer 'layer1': children_count=1000000 is out of range"),
        (layer("layer1_0_quantize1", type="ReLU"), "layer 'layer1_0_quantize1': unknown key"),
        (tensors_with(lambda t: t.pop("fc.bias")), "model.safetensors: lacks the tensor 'fc.bias'"),
        (tensors_with(lambda t: t.update({"fc.bias": t["fc.bias"].astype(np.int64)})), "is int64 of shape '(3,)'"),
        (tensors_with(lambda t: t.update({"more": t["fc.bias"].copy()})), "config.json: lacks the tensor 'more'"),
        (tensors_with(lambda t: t["layer1_0_conv1.weight"].__setitem__(-1, 0xF0)), "unused high nibble"),
        (huge_header, "is no safetensors file"),
        (many_tensors, "its header of 19,000,001 bytes is over 16,777,216"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is no safetensors file"),
    ],
)
def test_a_hostile_folder_is_one_sentence(change: Callable[[Path], None], said: str, unsigned: Path) -> None:
    change(unsigned)
    with pytest.raises(ModelError) as error:
        Model.load(unsigned)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_files_hurt_anywhere_are_a_model_or_one_sentence(unsigned: Path) -> None:
    random = np.random.default_rng(3)
    whole = {name: (unsigned / name).read_bytes() for name in ("config.json", "model.safetensors")}
    refused = 0
    for trial in range(120):
        name = ("config.json", "model.safetensors")[trial % 2]
        hurt = bytearray(whole[name])
        if trial % 3:
            for at in random.integers(0, len(hurt) if trial % 2 == 0 else 2000, 1 + trial % 4):
                hurt[at] = random.integers(256)
        else:
            del hurt[random.integers(len(hurt)) :]
        (unsigned / name).write_bytes(hurt)
        try:
            Model.load(unsigned)
        except ModelError as error:
            refused += "\n" not in str(error)
        (unsigned / name).write_bytes(whole[name])
    assert refused > 60


def test_faults_of_the_command_are_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for model, out in ((tmp_path / "none", "x"), (tiny, tmp_path / "other"), (tiny, tmp_path / "file")):
        assert main(["pack", str(model), str(out)]) == 1
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert main(["pack", str(tiny), str(tmp_path / "x")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert "interop" in said[3]
    assert str(ROOT) in said[3]
