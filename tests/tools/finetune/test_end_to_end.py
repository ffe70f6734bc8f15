"""A parent, its calibration, an epoch of training and the export, by the commands a user gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT
from tools.finetune.__main__ import main

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from int4core.engine import Engine  # noqa: E402
from int4core.layers import Quantize, walk  # noqa: E402
from int4core.model import Model  # noqa: E402
from tests.tools.finetune.tiny import CPU, SIZE, TINY, calibrated  # noqa: E402
from tools.finetune import checkpoint, data, train  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.qresnet import exact, quantize_input  # noqa: E402
from tools.finetune.resnet import ResNet  # noqa: E402
from tools.finetune.verify import compare  # noqa: E402


def run(*words: object) -> None:
    assert main([str(w) for w in words]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 -> calibrate -> one epoch -> export, by the commands a user gives."""
    folder = tmp_path_factory.mktemp("finetune")
    common = ("--size", SIZE, "--device", "cpu", "--seed", 1)
    run("pretrain", "--arch", "tiny", "--classes", 16, "--images", 1920, "--epochs", 1, "--batch", 32,
        "--out", folder / "parent.pt", *common)  # fmt: skip
    run("calibrate", folder / "parent.pt", "--images", 128, "--out", folder / "cal.pt", *common)
    run("train", folder / "cal.pt", "--parent", folder / "parent.pt", "--images", 480, "--epochs", 1,
        "--batch", 32, "--out", folder / "quantised.pt", *common)  # fmt: skip
    run("export", folder / "quantised.pt", "--size", SIZE, "--out", folder / "model")
    return folder


class TestEndToEnd:
    def test_the_parent_learns_and_its_int4_child_keeps_it(self, made: Path) -> None:
        source = data.Procedural(CPU, 100, SIZE, 1, classes=16, held_out=True)
        batches = [source.batch(i) for i in range(3)]
        fp32 = checkpoint.load_fp32(made / "parent.pt", TINY).eval()
        child, _ = checkpoint.load_quantised(made / "quantised.pt")
        before = train.accuracy(fp32, batches)
        after = train.accuracy(lambda x: exact(child, x), batches)
        assert before > 0.3, "chance is 0.0625"
        assert after > before - 0.12

    def test_the_engine_gives_the_very_same_integers(self, made: Path) -> None:
        child, _ = checkpoint.load_quantised(made / "quantised.pt")
        source = data.Procedural(CPU, 16, SIZE, 1, classes=16, held_out=True)
        with Engine(Model.load(made / "model"), "numpy", batch_size=16) as engine:
            found = compare(child, engine, [source.batch(i) for i in range(4)])
        assert found.images == 64
        assert found.agreement == 1.0
        assert len(found.largest) == 3 + 5 * 6 + 4 * 3 + 1 + 1
        assert set(found.largest.values()) == {0}

    def test_verify_prints_a_table(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run("verify", made / "quantised.pt", made / "model", "--images", 20, "--batch", 8, "--size", SIZE)
        out = capsys.readouterr().out
        assert "layer1_1_downsample" in out
        assert "agreement 100.00% on 20" in out

    def test_verify_fails_on_another_model(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run("export", made / "cal.pt", "--size", SIZE, "--out", made / "other")
        words = ["verify", made / "quantised.pt", made / "other", "--images", 64, "--size", SIZE]
        words += ["--least", 1]
        child, _ = checkpoint.load_quantised(made / "quantised.pt")
        source = data.Procedural(CPU, 64, SIZE, 0, classes=16, held_out=True)
        images, _ = source.batch(0)
        with Engine(Model.load(made / "other"), "numpy") as engine:
            theirs = engine.top1(quantize_input(images).to(torch.int8).numpy())
        differ = int((exact(child, images).argmax(1).numpy() != theirs).sum())
        assert main([str(w) for w in words]) == (1 if differ else 0)
        assert ("agreement is" in capsys.readouterr().err) == (differ > 0)
        with Engine(Model.load(made / "other"), "numpy") as engine:
            found = compare(child, engine, [source.batch(0)])
        assert max(found.largest.values()) > 0, "one epoch of training changed nothing"

    def test_the_model_has_the_formats_types(self, made: Path) -> None:
        net = Model.load(made / "model").network
        modes = {x.name: x.compute_mode for x in walk(net) if isinstance(x, Quantize)}
        assert modes["quantize1"] == modes["layer2_0_quantize3"] == "u31u16u4"
        assert modes["layer4_0_quantize3"] == "u31u16u7"
        assert modes["layer1_1_downsample"] == "u4u16u31"
        assert modes["layer1_0_downsample_1"] == "s32u16s8"
        assert modes["layer1_0_downsample_2"] == "s8u16s32"
        assert net.conv1.weight_dtype == "s8"
        assert {b.conv2.weight_dtype for b in net.blocks} == {"s4"}
        assert all(x.max_requant == x.requant_factor.max() for x in walk(net) if isinstance(x, Quantize))
        assert net.avgpool.kernel_size == 2

    def test_calibrate_leaves_histograms_and_a_plot(self, made: Path) -> None:
        with np.load(made / "cal_histograms.npz") as arrays:
            names = {name.rsplit(".", 1)[0] for name in arrays.files}
            assert len(names) == 1 + 5 * 3 + 4
            assert all(arrays[f"{n}.counts"].sum() > 0 for n in names)
        with Image.open(made / "cal_histograms.png") as plot:
            assert plot.width > 500

    def test_exact_and_float32_predict_alike(self, made: Path) -> None:
        child, _ = checkpoint.load_quantised(made / "quantised.pt")
        images, _ = data.Procedural(CPU, 64, SIZE, 5, classes=16).batch(0)
        with torch.no_grad():
            assert (child(images).argmax(1) == exact(child, images).argmax(1)).float().mean() > 0.95

    def test_evaluate(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run("evaluate", made / "quantised.pt", "--exact", "--images", 50, "--size", SIZE)
        assert "top-1 0." in capsys.readouterr().out
        assert main(["evaluate", str(made / "parent.pt"), "--exact", "--images", "8", "--size", "64"]) == 1
        assert "parent.pt" in capsys.readouterr().err

    def test_prepare_lists_what_is_quantised(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save(ResNet(TINY).state_dict(), made / "weights.pt")
        words = ("--arch", "tiny", "--classes", 16, "--weights", made / "weights.pt")
        run("prepare", *words, "--out", made / "prepared.pt")
        out = capsys.readouterr().out
        assert "conv1                    s8 weights, 3 -> 8, 7x7, stride 2" in out
        assert "layer4_0_quantize3       u7" in out
        checkpoint.load_fp32(made / "prepared.pt", TINY)

    def test_resume_on_the_command_line(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("train", made / "cal.pt", "--images", 64, "--batch", 16, "--size", 48, "--device", "cpu")
        run(*words, "--epochs", 1, "--out", made / "r.pt")
        assert checkpoint.load_extra(made / "r.pt")["run"]["step"] == 4
        run(*words, "--epochs", 2, "--out", made / "r.pt", "--resume")
        assert checkpoint.load_extra(made / "r.pt")["run"]["step"] == 8


def test_without_torch_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["export", "x.pt", "--out", str(tmp_path)]) == 1
    assert f"pip install -e '{ROOT}[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "--weights", "weights.pt"),
        ("pretrain", "--images", 4, "--batch", 4, "--size", 48),
        ("calibrate", "weights.pt", "--images", 4, "--batch", 4, "--size", 48),
    ],
    ids=lambda words: words[0],
)
def test_where_to_write_is_looked_at_before_the_work_is_done(
    words: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(ResNet(TINY).state_dict(), "weights.pt")
    Path("file").touch()
    given = [str(word) for word in (*words, "--arch", "tiny", "--classes", 16, "--device", "cpu")]
    if words[0] == "prepare":
        given = given[: given.index("--device")]
    assert main([*given, "--out", "made/on/the/way.pt"]) == 0
    assert checkpoint.kind(Path("made/on/the/way.pt")) in ("parent", "quantised")

    def work(*_: object) -> None:
        raise AssertionError("work that would be lost")

    monkeypatch.setattr(checkpoint, "load_fp32", work)
    monkeypatch.setattr(train.Trainer, "run", work)
    capsys.readouterr()
    assert main([*given, "--out", "file/x.pt"]) == 1
    assert capsys.readouterr().err == f"{words[0]}: {tmp_path.resolve()}/file: cannot be written: File exists\n"
    assert main([*given, "--out", "made"]) == 1
    assert "made: cannot be written: Is a directory" in capsys.readouterr().err


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = ResNet(TINY), ResNet(TINY)
    checkpoint.save(tmp_path / "a.pt", before)

    def full(_state: object, path: Path) -> None:
        path.write_bytes(b"a part")
        raise RuntimeError("unexpected pos 64 vs 0\nmore of it")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FinetuneError, match=r"a\.pt: cannot be written: no room on .* \(unexpected pos 64 vs 0\)$"):
        checkpoint.save(tmp_path / "a.pt", after)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    kept = checkpoint.load_fp32(tmp_path / "a.pt", TINY)
    torch.testing.assert_close(kept.state_dict(), before.state_dict())


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def drop(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return drop


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("arch"), "KeyError: 'arch'"),
        (without("arch", "blocks"), "KeyError: 'blocks'"),
        (without("state"), "KeyError: 'state'"),
        (without("state", "fc.weight"), 'Missing key(s) in state_dict: "fc.weight".'),
        (lambda data: data.update(arch=3), "TypeError: "),
    ],
)
def test_a_checkpoint_that_lacks_something_is_one_sentence(
    change: Callable[[dict[str, Any]], None],
    why: str,
    parent: ResNet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "q.pt"
    checkpoint.save(file, calibrated(parent))
    whole = torch.load(file, weights_only=True)
    change(whole)
    torch.save(whole, file)
    assert main(["export", str(file), "--out", str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"export: {file}: is not whole: {why}")
    assert said.count("\n") == 1


def test_where_no_run_was_begun_none_is_gone_on_with(
    parent: ResNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `prepare` and `calibrate`, whose checkpoints are as whole as those of a run."""
    checkpoint.save(tmp_path / "p.pt", parent)
    given = ["--arch", "tiny", "--classes", "16", "--device", "cpu", "--resume", "--out", str(tmp_path / "p.pt")]
    assert main(["pretrain", *given]) == 1
    assert "p.pt: holds no run to go on with: without --resume a new one begins" in capsys.readouterr().err
