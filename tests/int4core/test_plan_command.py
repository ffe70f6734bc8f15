"""`python -m int4core.plan` and the part of `python -m int4core.tune` that needs no GPU."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from int4core import plan, tune
from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.table import KNOWN_NUMBERS, default_kernel
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import ConvOp, PoolOp, joined
from int4core.backends.cuda.plan.planner import make_plan
from int4core.model import Model
from int4core.random_model import random_model
from int4core.tuning.files import load_tuning
from tests.paths import ROOT

OPERATIONS = 52
"""53 convolutions of which 4 are part of another, mean, fully connected layer, top-1."""


def rows(text: str) -> list[list[str]]:
    """The words of the lines of operations: between the heading and the sums."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("operation "))
    end = next(i for i, line in enumerate(lines) if " operations, " in line)
    return [line.split() for line in lines[head + 1 : end]]


def layers(text: str) -> list[str]:
    """Those of the lines, where one is of two layers both."""
    found = []
    for words in rows(text):
        found += [words[0], words[2]] if words[1] == "+" else [words[0]]
    return found


@pytest.mark.parametrize("gpu", sorted(CHIPS))
def test_every_chip_has_a_plan(gpu: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpu", gpu, "--batch", "64"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{gpu} ({CHIPS[gpu].arch}), batch 64: kernels ")
    names = layers(text)
    # A pool that is part of the last convolution's kernel has a line with it.
    assert names == [op.name for op in fuse(Model.load(ROOT / "model").network, 64)]
    assert len(names) == OPERATIONS
    assert f"{len(rows(text))} operations, 4.089 G multiply-adds per image" in text


def test_floors_follow_from_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    """conv1 by hand: 112 * 112 * 64 outputs of 147 products; its image, its maxima, and its weights."""
    assert plan.main(["--gpu", "h200", "--batch", "100"]) == 0
    lines = rows(capsys.readouterr().out)
    *_, macs, kilobytes, tensor, memory = lines[0]
    products, activations = 112 * 112 * 64 * 147, 224 * 224 * 3 + 56 * 56 * 64 // 2
    assert float(macs) == pytest.approx(products / 1e6, abs=0.05)
    assert float(kilobytes) == pytest.approx(activations / 1e3, abs=0.05)
    assert float(tensor) == pytest.approx(2 * 100 * products / 1979e12 * 1e6, abs=0.06)
    assert float(memory) == pytest.approx((100 * activations + 147 * 64) / 4800e9 * 1e6, abs=0.06)
    floors = [(float(words[-2]), float(words[-1])) for words in lines]
    assert all(tensor > 0 or memory > 0 for tensor, memory in floors)


def test_the_sum_of_floors_is_the_images_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpu", "h200", "--batch", "2048"]) == 0
    text = capsys.readouterr().out
    total = sum(max(float(words[-2]), float(words[-1])) for words in rows(text))
    last = next(line for line in text.splitlines() if "operations," in line).split()
    rate = float(last[-2 if last[-1] == "images/s" else -1].replace(",", ""))
    assert rate == pytest.approx(2048 / total * 1e6, rel=0.001)


def test_the_published_figures_of_the_h200(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpu", "h200", "--batch", "1024"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "h200 (sm_90a), batch 1024: kernels tuned for batch 1, 8, 32, 128, 1024 (measured on an H100)"
    )
    assert sum(max(float(words[-2]), float(words[-1])) for words in rows(text)) == pytest.approx(4577, abs=5)


def test_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest that leaves 7x7 pixels at the end, and an odd one."""
    assert plan.main(["--batch", "2", "--size", "193", "201"]) == 0
    assert "193x201x3" in capsys.readouterr().out


def test_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "int4core.plan", "--model", "model", "--batch", "8", "--size", "208", "224"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(layers(done.stdout)) == OPERATIONS
    assert "208x224x3 7x7/2 -> 64" in done.stdout


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet18") / "model"
    random_model(blocks=(2, 2, 2, 2), width=64, classes=1000, basic=True).save(folder)
    return folder


@pytest.mark.parametrize("gpu", ["h200", "l4", "b200"])
def test_a_network_of_basic_blocks(gpu: str, resnet18: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpu", gpu, "--batch", "256", "--model", str(resnet18)]) == 0
    text = capsys.readouterr().out
    origin = (
        "tuned for batch 256 (static model)" if gpu == "l4" else f"chosen by rule: there is no tuned file for {gpu}"
    )
    assert f"kernels {origin}" in text
    assert "layer1_0_conv2           56x56x64 3x3 -> 64 + input " in text
    assert "layer2_0_conv2           28x28x128 3x3 -> 128 + 1x1/2 of 64 " in text
    assert "20 operations, 1.814 G multiply-adds per image" in text
    assert "does not fit" not in text


def test_tuning_basic_blocks_leaves_the_file_of_bottlenecks(
    resnet18: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(resnet18)
    chip = CHIPS["h200"]
    ops = [op for op in fuse(model.network, 8) if isinstance(op, ConvOp)]
    choices = [tune.Choice((op,), (tune.Timed(default_kernel(op, chip), 1.0, True),)) for op in ops]
    monkeypatch.setattr(tune, "tune", lambda *_: iter(choices))
    network = SimpleNamespace(chip=chip, model=model, compiled="nothing compiled", device=nullcontext())
    monkeypatch.setattr(tune, "DeviceNetwork", lambda *_: network)
    assert (
        tune.main(["--model", str(resnet18), "--batch", "8", "1024", "--finalists", "1", "--out", str(tmp_path)]) == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h200.basic", "h200.basic.batch8"]
    tuning = load_tuning("h200", model.network, folders=(tmp_path,))
    numbers = tuning.numbers_for(8)
    assert numbers["layer2_0_downsample_0"] == numbers["layer2_0_conv2"]
    assert make_plan(model.network, chip, 8, numbers=numbers).misfits == ()


def test_a_pair_is_chosen_where_it_takes_less_than_two_kernels() -> None:
    chip = CHIPS["h200"]
    single = [op for op in fuse(Model.load(ROOT / "model").network, 8) if isinstance(op, ConvOp)]
    both = joined(single)
    assert [op.name for op in both][:3] == [
        "layer1_0_conv3 + layer1_1_conv1", "layer1_1_conv3 + layer1_2_conv1", "layer1_2_conv3 + layer2_0_conv1"
    ]  # fmt: skip
    choices = [tune.Choice((op,), (tune.Timed(default_kernel(op, chip), 1.0, True),)) for op in single]
    choices += [
        tune.Choice((op,), (tune.Timed(default_kernel(op, chip), us, True),))
        for op, us in zip(both[1:], (1.9, 2.1), strict=False)
    ]
    numbers = {name: timed.kernel.number for name, timed in tune.fastest(choices).items()}
    assert {name for name, number in numbers.items() if number == 160} == {"layer1_1_conv3", "layer1_2_conv1"}
    config = tune.to_autoconfig(chip, 8, single, numbers)
    assert config.kernels["layer1_residual2_conv3"] == config.kernels["layer1_residual3_conv1"] == 160
    planned = make_plan(Model.load(ROOT / "model").network, chip, 8, numbers=config.by_layer())
    assert planned.misfits == ()
    assert [step.op.name for step in planned.steps if step.kernel.number == 160] == ["layer1_1_conv3 + layer1_2_conv1"]


@pytest.mark.parametrize(("us", "number"), [(1.9, 250), (2.1, 102)])
def test_the_pool_is_joined_to_its_convolution_where_that_takes_less(us: float, number: int) -> None:
    chip, net = CHIPS["h200"], Model.load(ROOT / "model").network
    conv, pool = [op for op in fuse(net, 1024) if isinstance(op, (ConvOp, PoolOp))][-2:]
    (both,) = joined([conv, pool])
    choices = [
        tune.Choice((op,), (tune.Timed(default_kernel(op, chip), took, True),))
        for op, took in ((conv, 1.0), (pool, 1.0), (both, us))
    ]
    numbers = {name: timed.kernel.number for name, timed in tune.fastest(choices).items()}
    config = tune.to_autoconfig(chip, 1024, [conv, pool], numbers)
    assert config.kernels == {"layer4_residual3_conv3": number}
    assert make_plan(net, chip, 1024, numbers=config.by_layer()).misfits == ()


@pytest.mark.parametrize("command", [plan.main, tune.main])
def test_an_unknown_gpu_is_an_error_that_lists_the_known(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(command)
    with pytest.raises(SystemExit) as stop:
        command(["--gpu", "k80"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "k80" in said
    assert all(name in said for name in CHIPS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "batch 0: at least 1"),
        (["--size", "20", "20"], "avgpool"),
        (["--gpu", "a100", "--batch", "1000000"], "choose a smaller batch"),
        (["--batch", "1" + "0" * 400], "at least 1 and at most 16777216 images"),
        (["--size", "1" + "0" * 400, "224"], "is over 32768 pixels a side"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1000
    assert said in captured.err
    assert not captured.out


def test_a_model_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--model", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'nowhere'}")
    assert said.count("\n") == 1


def test_a_chosen_file_is_used_and_what_does_not_fit_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine"
    lines = ("# engine: int4core", "# gpu: a100", "conv1=212", "layer1_residual1_conv1=6", "layer2_residual1_conv1=100")
    path.write_text("\n".join(lines), encoding="utf-8")
    assert plan.main(["--gpu", "a100", "--autoconfig", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"kernels of {path}" in text
    found = {words[0]: words for words in rows(text)}
    assert "212" in found["conv1"]
    assert "6" in found["layer1_0_conv1"]
    said = "layer2_0_conv1: kernel 100 does not fit here (wgmma runs on compute capability 9.0, not 8.0); kernel "
    assert f"{path}:5: {said}{found['layer2_0_conv1'][5]} computes it" in text
    assert plan.main(["--gpu", "h200", "--autoconfig", str(path)]) == 1
    assert f"error: {path}: was made for 'a100'" in capsys.readouterr().err


def test_the_table_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--table"]) == 0
    assert [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()] == sorted(KNOWN_NUMBERS)


def test_ranges_of_numbers() -> None:
    assert tune.parse_numbers("0-3, 100,102-103") == {0, 1, 2, 3, 100, 102, 103}
    assert tune.parse_numbers("0-99999999999999") == KNOWN_NUMBERS
    for wrong in ("", "a", "1-", "-1", "1,,2"):
        with pytest.raises(ValueError, match="no number and no range"):
            tune.parse_numbers(wrong)
