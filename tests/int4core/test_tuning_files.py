"""Which tuned file a GPU and a batch size get, and what is said of files that do not fit."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from int4core import tune
from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families import conv_wgmma
from int4core.backends.cuda.families.table import KNOWN_NUMBERS, digest
from int4core.backends.cuda.plan.ops import named
from int4core.backends.cuda.plan.planner import make_plan
from int4core.layers import ResNet
from int4core.model import Model
from int4core.random_model import random_model
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import AutoconfigError
from int4core.tuning.files import FOLDER, Tuning, file_of, load_tuning, user_folder
from int4core.tuning.static.model import GPUS
from tests.int4core.networks import random_network
from tests.paths import ROOT

NET = random_network(0)


@cache
def default_network() -> ResNet:
    return Model.load(ROOT / "model").network


def write(folder: Path, name: str, number: int, *, gpu: str = "h200", batch: str = "1024", more: str = "") -> Path:
    path = folder / name
    head = f"# engine: int4core\n# gpu: {gpu}\n# origin: measured\n# batch: {batch}\n"
    path.write_text(f"{head}conv1={number}\n{more}", encoding="utf-8")
    return path


def conv1(tuning: Tuning, n: int) -> int | None:
    return tuning.numbers_for(n).get("conv1")


def test_the_nearest_batch_size_serves(tmp_path: Path) -> None:
    for name, number, batch in (("h200", 200, "1024"), ("h200.batch8", 201, "8"), ("h200.batch1", 202, "1")):
        write(tmp_path, name, number, batch=batch)
    tuning = load_tuning("h200", NET, folders=(tmp_path,))
    assert tuning.batch == 1024
    assert tuning.notice == "kernels tuned for batch 1, 8, 1024 (measured)"
    assert {n: conv1(tuning, n) for n in (1, 2, 4, 8, 32, 256, 1024, 2048, 4096)} == {
        1: 202, 2: 202, 4: 201, 8: 201, 32: 201, 256: 200, 1024: 200, 2048: 200, 4096: 200
    }  # fmt: skip
    assert all(tuning.numbers_for(n) == {} for n in (33, 64, 128, 255, 4097))


def test_files_of_other_chips_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "h200", 200)
    write(tmp_path, "l40s", 210, gpu="l40s")
    write(tmp_path, "l40s.batch1", 211, gpu="l40s", batch="1")
    assert load_tuning("h200", NET, folders=(tmp_path,)).by_batch == {1024: {"conv1": 200}}
    missing = load_tuning("l4", NET, folders=(tmp_path,))
    assert missing.notice == "kernels chosen by rule: there is no tuned file for l4"
    assert missing.by_batch == {}
    assert missing.numbers_for(1024) == {}


def test_a_file_for_another_gpu_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "h200", 200, gpu="a100")
    with pytest.raises(AutoconfigError, match=rf"{re.escape(str(path))}: was made for 'a100', .* h200: tune it"):
        load_tuning("h200", NET, folders=(tmp_path,))
    with pytest.raises(AutoconfigError, match="was made for 'a100'"):
        load_tuning("h200", NET, autoconfig.read(path))


def test_an_unknown_number_names_its_line(tmp_path: Path) -> None:
    unknown = max(KNOWN_NUMBERS) + 1
    path = write(tmp_path, "h200", 200, more=f"layer1_residual1_conv2=3\nlayer1_residual1_conv1={unknown}\n")
    said = rf"{re.escape(str(path))}:7: layer1_residual1_conv1={unknown}: no such kernel here; known: 0-"
    with pytest.raises(AutoconfigError, match=said):
        load_tuning("h200", NET, folders=(tmp_path,))
    with pytest.raises(AutoconfigError, match=said):
        load_tuning("h200", NET, autoconfig.read(path))


def test_an_unknown_layer_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", 200, more="layer1_residual9_conv2=3\n")
    with pytest.raises(AutoconfigError, match=rf"{re.escape(str(path))}:6: .*no layer layer1_8_conv2; remove the line"):
        load_tuning("h200", NET, autoconfig.read(path))
    path = write(tmp_path, "mine", 200, more="layer1_conv2=3\n")
    with pytest.raises(AutoconfigError, match=rf"{re.escape(str(path))}:6: unknown layer 'layer1_conv2'"):
        autoconfig.read(path)


@pytest.mark.parametrize("batch", ["0", "-1", "many", "1.5", "", "9" * 900, "1" * 10, "\u0661"])
def test_a_batch_that_is_none_is_an_error(tmp_path: Path, batch: str) -> None:
    write(tmp_path, "h200", 200, batch=batch)
    with pytest.raises(AutoconfigError, match="is no batch size") as caught:
        load_tuning("h200", NET, folders=(tmp_path,))
    assert len(caught.value.why) < 150


def test_the_gpu_of_a_hostile_file_is_quoted_in_part(tmp_path: Path) -> None:
    path = write(tmp_path, "h200", 200, gpu="x" * 900)
    with pytest.raises(AutoconfigError, match=r"was made for 'x+\.\.\.', and") as caught:
        load_tuning("h200", NET, autoconfig.read(path))
    assert len(caught.value.why) < 150


def test_a_chosen_file_serves_every_batch_and_alone(tmp_path: Path) -> None:
    write(tmp_path, "h200.batch1", 202, batch="1")
    path = write(tmp_path, "mine", 203, batch="64")
    tuning = load_tuning("h200", NET, autoconfig.read(path), (tmp_path,))
    assert [conv1(tuning, n) for n in (1, 64, 100_000)] == [203] * 3
    assert tuning.notice == f"kernels of {path}"


def test_numbers_of_another_engine_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "original"
    path.write_text("conv1=13\nlayer1_residual1_conv2=77777\n", encoding="utf-8")
    tuning = load_tuning("h200", NET, autoconfig.read(path))
    assert tuning.by_batch == {}
    assert "chosen by rule" in tuning.notice
    assert "original submission" in tuning.notice


def test_names_of_files() -> None:
    assert file_of("h200") == FOLDER / "h200"
    assert file_of("h200", 8) == FOLDER / "h200.batch8"


def test_networks_of_basic_blocks_have_files_of_their_own(tmp_path: Path) -> None:
    """Their layers have the same names and other shapes."""
    assert file_of("h200", basic=True) == FOLDER / "h200.basic"
    assert file_of("h200", 8, basic=True) == FOLDER / "h200.basic.batch8"
    write(tmp_path, "h200", 200)
    write(tmp_path, "h200.batch8", 201, batch="8")
    net = random_network(0, basic=True)
    none = load_tuning("h200", net, folders=(tmp_path,))
    assert none.by_batch == {}
    assert none.notice == "kernels chosen by rule: there is no tuned file for h200 and basic blocks"
    write(tmp_path, "h200.basic", 202)
    write(tmp_path, "h200.basic.batch8", 203, batch="8")
    assert load_tuning("h200", net, folders=(tmp_path,)).by_batch == {1024: {"conv1": 202}, 8: {"conv1": 203}}
    assert load_tuning("h200", NET, folders=(tmp_path,)).by_batch == {1024: {"conv1": 200}, 8: {"conv1": 201}}


@pytest.mark.parametrize("blocks", [(2, 2, 2, 2), (3, 4, 6, 3)], ids=["ResNet-18", "ResNet-34"])
def test_shipped_files_of_basic_blocks_fit(blocks: tuple[int, ...]) -> None:
    net = random_model(blocks=blocks, width=64, classes=1000, basic=True).network
    shipped = [gpu for gpu in CHIPS if file_of(gpu, basic=True).is_file()]
    assert set(shipped) == set(GPUS)
    for gpu in shipped:
        tuning = load_tuning(gpu, net)
        plan = make_plan(net, CHIPS[gpu], tuning.batch, numbers=tuning.numbers_for(tuning.batch))
        assert plan.misfits == ()
        convolutions = {step.op.name for step in plan.steps if step.kernel.number is not None}
        assert convolutions <= tuning.numbers_for(tuning.batch).keys()


SHIPPED = sorted(gpu for gpu in CHIPS if file_of(gpu).is_file())


def test_the_tuned_chips_come_with_the_package() -> None:
    assert {"h100", "h200"} <= set(SHIPPED)


@pytest.mark.parametrize("gpu", SHIPPED)
def test_shipped_files_fit_the_default_network(gpu: str) -> None:
    """Every number is one that computes its layer on that chip: a plan of the batch has no misfits."""
    tuning = load_tuning(gpu, default_network())
    if "static model" not in tuning.notice:
        assert {1, 8, 32, 128, 1024} <= set(tuning.by_batch)
    for batch, numbers in tuning.by_batch.items():
        assert autoconfig.read(file_of(gpu, None if batch == tuning.batch else batch)).metadata["gpu"] == gpu
        plan = make_plan(default_network(), CHIPS[gpu], batch, numbers=numbers)
        assert plan.misfits == ()
        chosen = {
            name: step.kernel.number for step in plan.steps if step.kernel.number is not None for name in named(step.op)
        }
        assert chosen == {name: numbers[name] for name in chosen}, f"{gpu}, batch {batch}: missing layers"


def test_shipped_files_name_layers_of_the_default_network() -> None:
    for path in (path for gpu in SHIPPED for path in FOLDER.glob(f"{gpu}*")):
        if ".basic" in path.name:
            continue
        load_tuning(path.name.partition(".")[0], default_network(), autoconfig.read(path))


def test_a_user_s_file_wins_over_the_one_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    shipped, own = tmp_path / "package", user_folder()
    assert own == tmp_path / "int4core" / "autoconfig"
    shipped.mkdir()
    own.mkdir(parents=True)
    write(shipped, "h200", 200)
    write(shipped, "h200.batch8", 201, batch="8")
    write(own, "h200.batch8", 202, batch="8")
    tuning = load_tuning("h200", NET, folders=(own, shipped))
    assert (conv1(tuning, 1024), conv1(tuning, 8)) == (200, 202)
    assert tuning.notice == f"kernels tuned for batch 8, 1024 (measured, 1 of 2 files from {own})"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--out", "/dev/null"), "error: /dev/null: no file can be written there: File exists\n"),
        (("--batch", "8", "0"), "error: batch 0: at least 1 and at most 16777216 images can be a batch\n"),
    ],
)
def test_what_cannot_end_well_is_no_minutes_of_tuning(
    given: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "DeviceNetwork", None)
    assert tune.main(["--model", str(ROOT / "model"), *given]) == 1
    assert capsys.readouterr().err == said


def test_what_an_editor_leaves_beside_a_file_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, "h200", 200)
    write(tmp_path, "h200.batch8", 201, batch="8")
    for name in ("h200.batch8~", "h200.batch8.bak", "h200.batch", "h200.batch-8"):
        write(tmp_path, name, 202, batch="8")
    tuning = load_tuning("h200", NET, folders=(tmp_path,))
    assert (conv1(tuning, 1024), conv1(tuning, 8)) == (200, 201)


def test_tuning_writes_to_the_user_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "DeviceNetwork", lambda *_: SimpleNamespace(device=nullcontext()))
    written = []
    monkeypatch.setattr(tune, "_tune_batch", lambda _network, n, options: written.append((n, options.out)))
    assert tune.main(["--model", str(ROOT / "model"), "--batch", "8"]) == 0
    assert written == [(8, tmp_path / "int4core" / "autoconfig")]


def test_numbers_that_meant_other_kernels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "h200", 200)
    head = path.read_text(encoding="utf-8")
    path.write_text(f"# table: {digest([200])}\n{head}", encoding="utf-8")
    assert conv1(load_tuning("h200", NET, folders=(tmp_path,)), 1024) == 200
    path.write_text(f"# table: {digest([201])}\n{head}", encoding="utf-8")
    said = rf"{re.escape(str(path))}: its numbers are of another kernel table \(`# table: {digest([201])}`, "
    for chosen in (None, autoconfig.read(path)):
        with pytest.raises(AutoconfigError, match=said):
            load_tuning("h200", NET, chosen, (tmp_path,))


def test_a_digest_is_of_the_entries_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest([0, 102])
    assert digest([102, 0, 0]) == before != digest([0, 103])
    monkeypatch.setattr(conv_wgmma, "CONFIGS", (*conv_wgmma.CONFIGS[:3], *conv_wgmma.CONFIGS[:-3]))
    assert digest([0, 102]) == before
    assert digest([103]) == digest([103])
    monkeypatch.setattr(conv_wgmma, "CONFIGS", conv_wgmma.CONFIGS[::-1])
    assert digest([0, 102]) != before


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[a-z]*")), ids=lambda path: path.name)
def test_the_package_s_files_say_what_their_numbers_mean(path: Path) -> None:
    config = autoconfig.read(path)
    assert config.metadata["table"] == digest(config.kernels.values())
