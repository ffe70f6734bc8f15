"""Which tuned file a GPU and a batch size get, and what is wrong with a file that is not for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.planner import make_plan
from int4core.layers import ResNet
from int4core.model import Model
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import AutoconfigError
from int4core.tuning.files import FOLDER, file_of, load_tuning
from tests.paths import ROOT


@cache
def network() -> ResNet:
    return Model.load(ROOT / "model").network


def write(folder: Path, name: str, *lines: str, gpu: str = "h200", batch: int = 1024) -> Path:
    head = ["# engine: int4core", f"# gpu: {gpu}", "# origin: measured", f"# batch: {batch}"]
    (folder / name).write_text("\n".join([*head, *lines]) + "\n")
    return folder / name


def test_the_nearest_batch_size_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "h200", "conv1=200")
    write(tmp_path, "h200.batch8", "conv1=201", batch=8)
    tuning = load_tuning("h200", network(), folder=tmp_path)
    taken = {n: tuning.numbers_for(n).get("conv1") for n in (1, 2, 8, 32, 33, 255, 256, 1024, 4096, 4097)}
    assert taken == {1: None, 2: 201, 8: 201, 32: 201, 33: None, 255: None, 256: 200, 1024: 200, 4096: 200, 4097: None}
    assert tuning.notice == "kernels tuned for batch 8, 1024 (measured)"


def test_without_a_file_kernels_are_chosen_by_rule_and_it_says_so(tmp_path: Path) -> None:
    tuning = load_tuning("h200", network(), folder=tmp_path)
    assert tuning.numbers_for(1024) == {}
    assert tuning.notice == "kernels chosen by rule: there is no tuned file for h200"


def test_a_file_for_another_gpu_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "h200", "conv1=200", gpu="a100")
    with pytest.raises(AutoconfigError, match=r"was made for a100, and this GPU is h200.*int4core\.tune") as error:
        load_tuning("h200", network(), folder=tmp_path)
    assert str(file) in str(error.value)


def test_an_unknown_number_names_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "h200", "conv1=200", "layer1_residual1_conv2=9999")
    with pytest.raises(AutoconfigError, match="9999") as error:
        load_tuning("h200", network(), folder=tmp_path)
    assert f"{file}:6" in str(error.value)


def test_an_unknown_layer_of_a_chosen_file_names_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "mine", "conv1=200", "layer1_residual9_conv2=105")
    with pytest.raises(AutoconfigError, match="layer1_residual9_conv2") as error:
        load_tuning("h200", network(), autoconfig.read(file), folder=tmp_path)
    assert f"{file}:6" in str(error.value)


def test_a_chosen_file_serves_every_batch_size(tmp_path: Path) -> None:
    write(tmp_path, "h200", "conv1=200")
    chosen = autoconfig.read(write(tmp_path, "mine", "conv1=203"))
    tuning = load_tuning("h200", network(), chosen, folder=tmp_path)
    assert [tuning.numbers_for(n)["conv1"] for n in (1, 64, 100_000)] == [203] * 3
    assert str(tmp_path / "mine") in tuning.notice


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_the_files_of_the_project_fit_its_model(name: str) -> None:
    """Every number of every file is the kernel that a plan takes for its batch size."""
    tuning = load_tuning(name, network())
    assert set(tuning.by_batch) == {1, 8, 32, 128, 1024}
    for n in tuning.by_batch:
        plan = make_plan(network(), CHIPS[name], n, numbers=tuning.numbers_for(n))
        assert plan.notes == ()
        chosen = [step for step in plan.steps if step.kernel.number is not None]
        assert all(step.kernel.number == tuning.numbers_for(n)[step.op.name] for step in chosen)


def test_names_of_files() -> None:
    assert file_of("h200") == FOLDER / "h200"
    assert file_of("h200", 8) == FOLDER / "h200.batch8"
