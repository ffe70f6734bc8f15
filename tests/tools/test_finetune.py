from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT
from tools.finetune.__main__ import main

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from int4core import quantize  # noqa: E402
from int4core.dtypes import S8, S32, U4, U7  # noqa: E402
from int4core.engine import Engine  # noqa: E402
from int4core.layers import Quantize, walk  # noqa: E402
from int4core.model import Model  # noqa: E402
from int4core.preprocess import preprocess  # noqa: E402
from pipeline.samples.classes import read_classes  # noqa: E402
from tools.finetune import checkpoint, convert, data, export, fakequant, ranges, recipe, train  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.qresnet import QuantResNet, exact, quantize_input  # noqa: E402
from tools.finetune.resnet import ARCHITECTURES, Architecture, ResNet, load_parent  # noqa: E402
from tools.finetune.verify import compare  # noqa: E402
from tools.shapes import class_name  # noqa: E402

CPU = torch.device("cpu")
TINY = Architecture((2, 1, 1, 1), width=8, classes=16)
SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other by spinning, which a busy machine turns into minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture
def parent() -> ResNet:
    """A tiny parent with batch norms as after some training: no statistic is its default."""
    torch.manual_seed(3)
    model = ResNet(TINY)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    with torch.no_grad():
        model.bn1.weight[0].neg_()
    return model.eval()


def calibrated(parent: ResNet) -> QuantResNet:
    source = data.Procedural(CPU, 16, SIZE, 0, classes=16)
    histograms = ranges.collect(parent, lambda: [source.batch(0)[0]])
    hi = {name: r.hi for name, r in QuantResNet(parent).ranges()}
    steps = {n: ranges.choose_step(h, hi[n], "mse", 99.999) for n, h in histograms.items()}
    return convert.build(parent, steps)


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


def test_images_are_resized_as_the_network_s_input_is(tmp_path: Path) -> None:
    """The long side rounds down: 300 x 257 become 298 x 256."""
    pixels = np.random.default_rng(5).integers(0, 256, (257, 300, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = preprocess(path)
    loaded = quantize_input(data.normalise(data.load_image(path, 224, None)[None]))
    np.testing.assert_array_equal(loaded[0].numpy().astype(np.int8), expected)


class Steps:
    """A clock by which whatever is timed takes as long, whatever the machine: it moves on where it is looked at."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 0.1
        return self.now_s


def test_recipe_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Steps()
    monkeypatch.setattr(recipe, "time", clock)
    monkeypatch.setattr(train, "time", clock)
    plan = recipe.Recipe(
        TINY, minutes=0.06, sizes=((0.0, 48), (0.5, SIZE)), final_size=SIZE, parent_batch=16,
        quantised_batch=8, parent_lr=0.05, calibration_batches=2, reserve_seconds=1.0, test_images=40,
        exact_images=20, jpegs=16, engine_images=8, compile_quantised=False,
    )  # fmt: skip
    results = recipe.run(plan, tmp_path / "out", tmp_path / "work", CPU)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["engine_agreement"] == results["engine_agreement"] == 1.0
    assert kept["engine_largest_difference"] == 0
    assert min(kept["parent_steps"], kept["quantised_steps"]) > 2
    for name in ("fp32_top1", "int4_calibrated_top1", "int4_top1", "int4_exact_top1", "int4_jpeg_top1"):
        assert 0 <= kept[name] <= 1
    with tarfile.open(tmp_path / "out" / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "there")
    assert Model.load(tmp_path / "there" / "model").network.classes == 16
    assert read_classes(None, tmp_path / "there" / "model", 16) == tuple(class_name(n) for n in range(16))


class TestArithmetic:
    @pytest.mark.parametrize(("dtype", "lo", "hi"), [(U4, 0, 15), (U7, 0, 127), (S8, -128, 127)])
    def test_requantize_is_the_engines(self, dtype: object, lo: int, hi: int) -> None:
        rng = np.random.default_rng(0)
        acc = rng.integers(-(1 << 23), 1 << 23, (2, 300, 3, 3)) >> rng.integers(0, 22, (2, 300, 3, 3))
        factor = rng.integers(0, 65536, 300)
        # Halves are where rounding rules differ.
        factor[:40], acc[:, :40] = 1 << 15, rng.integers(-200, 200, (2, 40, 3, 3))
        ratio = torch.from_numpy(factor / 65536.0)
        ours = fakequant.requantize(torch.from_numpy(acc).double(), ratio, lo, hi).numpy()
        theirs = quantize.requantize(acc, factor.reshape(1, -1, 1, 1), 16, dtype)
        assert np.array_equal(ours, theirs)

    def test_rescale_is_the_engines(self) -> None:
        rng = np.random.default_rng(1)
        for largest in (0.4, 1.0, 7.3, 900.0, 32767.0, 60000.0):
            ratio = torch.from_numpy(rng.uniform(0, 1, 50) * largest)
            ratio[7] = largest
            shift = int(fakequant.residual_shift(ratio))
            factor = np.floor(ratio.numpy() * 2.0**shift + 0.5).astype(np.int64)
            assert factor.max() <= 65535
            assert shift == 16 or largest * 2.0 ** (shift + 1) > 65535
            x = rng.integers(-128, 128, (2, 50, 4, 4))
            ours = fakequant.rescale(torch.from_numpy(x).double(), ratio).numpy()
            assert np.array_equal(ours, quantize.requantize(x, factor.reshape(1, -1, 1, 1), shift, S32))

    def test_gradients_pass_inside_the_range_and_stop_outside(self) -> None:
        acc = torch.tensor([-50.0, 40.3, 99.0, 4000.0]).reshape(1, 1, 2, 2).requires_grad_()
        out = fakequant.requantize(acc, torch.tensor([0.125]), 0, 15)
        assert out.flatten().tolist() == [0, 5, 12, 15]
        out.sum().backward()
        assert acc.grad is not None
        assert acc.grad.flatten().tolist() == [0.0, 0.125, 0.125, 0.0]

    def test_a_step_learns_as_lsq_says(self) -> None:
        """Esser et al. 2020, equation 3: d(q*s)/ds = q - x/s inside the range, the bound outside."""
        tensor_range = fakequant.Range(15)
        tensor_range.base.fill_(0.5)
        unit = 1.0 / 1024
        acc = torch.tensor([[[[700.0, 1600.0], [-3.0, 90000.0]]]])
        for i, wanted in enumerate((1 - 700 * unit / 0.5, 3 - 1600 * unit / 0.5, 0.0, 15.0)):
            tensor_range.gain.grad = None
            step = tensor_range.step
            value = fakequant.requantize(acc, torch.tensor([unit]) / step, 0, 15) * step
            value.flatten()[i].backward()
            assert float(tensor_range.gain.grad) / 0.5 == pytest.approx(wanted, abs=1e-4)

    def test_bf16_holds_every_integer_between_layers(self) -> None:
        values = torch.arange(-128, 129, dtype=torch.float32)
        assert torch.equal(values.to(torch.bfloat16).float(), values)


class TestFolding:
    def test_folded_convolutions_are_convolution_and_batch_norm(self, parent: ResNet) -> None:
        model = calibrated(parent)
        for conv, norm in convert.parent_norms(parent, model).items():
            sources = [m for m in parent.modules() if isinstance(m, torch.nn.Conv2d)]
            source = sources[list(dict(model.convolutions()).values()).index(conv)]
            x = torch.randn(2, source.in_channels, 8, 8)
            wanted = norm(source(x))
            found = torch.nn.functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)

    def test_reestimation_brings_channels_back_to_their_mean(self, parent: ResNet) -> None:
        model = calibrated(parent)
        source = data.Procedural(CPU, 32, SIZE, 0, classes=16)
        batches = [source.batch(i)[0] for i in range(2)]

        def means() -> torch.Tensor:
            trace: dict[str, torch.Tensor] = {}
            exact(model, torch.cat(batches), trace)
            step = torch.tensor(2.64 / 127)
            return (trace["conv1"] * fakequant.by_channel(model.conv1.unit(step))).mean((0, 2, 3)).float()

        wanted = parent.bn1.bias.detach()
        before = (means() - wanted).abs().max()
        convert.reestimate(model, parent, batches)
        after = (means() - wanted).abs().max()
        assert after < 0.05
        assert after < before / 4

    def test_weight_steps_beat_the_plain_largest_value(self) -> None:
        weight = torch.randn(20, 200, generator=torch.Generator().manual_seed(0))

        def error(step: torch.Tensor) -> torch.Tensor:
            rounded = torch.clamp(torch.round(weight / step[:, None]), -8, 7) * step[:, None]
            return ((rounded - weight) ** 2).sum(1)

        plain = weight.abs().amax(1) / 7
        assert (error(convert.weight_steps(weight, 4)) <= error(plain) * 1.05).all()
        assert error(convert.weight_steps(weight, 4)).sum() < 0.8 * error(plain).sum()

    def test_dead_channels_still_fit_the_integers(self, parent: ResNet) -> None:
        with torch.no_grad():
            parent.blocks()[1].bn3.weight[3] = 0.0
            parent.blocks()[1].bn3.bias[3] = 2.0
            parent.blocks()[2].bn1.weight[1] = 1e-9
        net = export.to_model(calibrated(parent), SIZE).network
        assert np.abs(net.blocks[1].conv3.bias[3]) > 1000
        assert not net.blocks[1].conv3.weight[3].any()


class TestExportRefuses:
    def test_a_bias_out_of_s16(self, parent: ResNet) -> None:
        model = calibrated(parent)
        with torch.no_grad():
            model.blocks[1].conv2.bias[5] = 1e6
        with pytest.raises(FinetuneError, match=r"layer1_1_conv2: the bias of channel 5 .* s16"):
            export.to_model(model, SIZE)

    def test_a_factor_out_of_u16(self, parent: ResNet) -> None:
        model = calibrated(parent)
        with torch.no_grad():
            model.blocks[-1].quantize3.base.fill_(1e-6)
        with pytest.raises(FinetuneError, match=r"layer4_0_quantize3: the factor .* u16"):
            export.to_model(model, SIZE)

    def test_a_sum_out_of_24_bits(self, parent: ResNet) -> None:
        weight = np.full((3, 2048), 127)
        with pytest.raises(FinetuneError, match=r"fc: the sum of channel 0 .* 24 bits"):
            export._bound("fc", weight, np.zeros(3, np.int64), 0, 127)
        assert export._bound("fc", weight // 4, np.zeros(3, np.int64), 0, 127) == 2048 * 31 * 127

    def test_the_bound_is_reached_and_never_passed(self) -> None:
        rng = np.random.default_rng(0)
        weight, bias = rng.integers(-8, 8, (4, 12)), rng.integers(-50, 50, 4)
        bound = export._bound("x", weight, bias, 0, 15)
        extremes = [np.where(weight > 0, 15, 0), np.where(weight < 0, 15, 0)]
        sums = [np.abs((weight * x).sum(1) + bias).max() for x in extremes]
        assert max(sums) <= bound <= max(sums) + np.abs(bias).max()


class TestRanges:
    def test_percentile_is_numpys(self) -> None:
        values = np.abs(np.random.default_rng(0).normal(size=200_000))
        values[:50_000] = 0
        counts = np.histogram(values[values > 0], ranges.BINS, (0, values.max()))[0]
        h = ranges.Histogram(counts, float(values.max()), 50_000)
        for percent in (90.0, 99.0, 99.99):
            wanted = np.percentile(values, percent)
            assert h.percentile(percent) == pytest.approx(wanted, abs=2 * h.top / ranges.BINS)

    def test_least_error_clips_a_long_tail(self) -> None:
        values = np.random.default_rng(0).exponential(size=100_000)
        h = ranges.Histogram(np.histogram(values, ranges.BINS, (0, 40.0))[0], 40.0, 0)
        assert h.best_clip(15) < 10
        assert h.best_clip(127) > h.best_clip(15)
        assert ranges.choose_step(h, 15, "percentile", 99.999) > ranges.choose_step(h, 15, "mse", 99.999)

    def test_a_dead_network_is_named(self, parent: ResNet) -> None:
        with torch.no_grad():
            parent.bn1.weight.zero_()
            parent.bn1.bias.fill_(-1.0)
        with pytest.raises(FinetuneError, match=r"^quantize1: "):
            ranges.collect(parent, lambda: [torch.zeros(1, 3, SIZE, SIZE)])


class TestParent:
    def test_resnet50_is_torchvisions(self) -> None:
        model = ResNet(ARCHITECTURES["resnet50"])
        assert sum(p.numel() for p in model.parameters()) == 25_557_032
        names = set(model.state_dict())
        assert len(names) == 320
        assert {"layer1.0.downsample.1.running_var", "layer4.2.bn3.weight", "fc.bias"} <= names
        assert model.blocks()[3].conv2.stride == (2, 2), "v1.5 has its stride in the 3x3"

    def test_weights_of_another_shape_are_refused(self) -> None:
        state = ResNet(TINY).state_dict()
        with pytest.raises(FinetuneError, match=r"w\.pt: .*fc\.weight"):
            load_parent(state, replace(TINY, classes=10), "w.pt")
        del state["bn1.bias"]
        with pytest.raises(FinetuneError, match=r"bn1\.bias"):
            load_parent(state, TINY, "w.pt")

    def test_a_file_that_is_no_checkpoint(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "x.pt").write_bytes(b"nonsense")
        assert main(["export", str(tmp_path / "x.pt"), "--out", str(tmp_path / "m")]) == 1
        assert "x.pt" in capsys.readouterr().err
        assert main(["export", str(tmp_path / "y.pt"), "--out", str(tmp_path / "m")]) == 1
        assert "no such file" in capsys.readouterr().err


class TestTraining:
    def test_marginals_are_the_probabilities_of_the_parts(self) -> None:
        logits = torch.randn(5, 1000, dtype=torch.float32)
        labels = torch.tensor([0, 123, 999, 450, 77])
        p = torch.softmax(logits, 1).reshape(5, 10, 10, 10)
        wanted = torch.nn.functional.cross_entropy(logits, labels)
        for i, axes in enumerate(((2, 3), (1, 3), (1, 2))):
            part = (labels // (100, 10, 1)[i]) % 10
            wanted = wanted - 0.4 * torch.log(p.sum(axes)[torch.arange(5), part]).mean()
        found = float(train.classification_loss(logits, labels, 0.0, 0.4))
        assert found == pytest.approx(float(wanted), rel=1e-5)

    def test_rate_rises_then_falls_to_zero(self) -> None:
        s = train.Schedule(steps=100, seconds=None, lr=2.0, warmup=0.1)
        rates = [s.rate(s.progress(i, 0.0)) for i in range(101)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[10] == pytest.approx(2.0)
        assert rates[100] == pytest.approx(0.0, abs=1e-9)
        assert rates[:11] == sorted(rates[:11])
        assert rates[10:] == sorted(rates[10:], reverse=True)

    def test_time_ends_a_run(self) -> None:
        s = train.Schedule(steps=None, seconds=10.0, lr=1.0)
        assert s.progress(10**6, 5.0) == 0.5
        assert s.progress(1, 11.0) == 1.0
        with pytest.raises(FinetuneError):
            train.Schedule(steps=None, seconds=None, lr=1.0)

    def test_a_resumed_run_ends_where_an_unbroken_one_does(self, parent: ResNet) -> None:
        source = data.Procedural(CPU, 8, 48, 0, classes=16)
        schedule = train.Schedule(steps=6, seconds=None, lr=1e-3)

        def trainer(model: QuantResNet) -> train.Trainer:
            return train.Trainer(model, schedule, train.forward_of(model, CPU, compiled=False))

        class StopError(Exception):
            pass

        def stop(p: train.Progress) -> None:
            if p.step == 3:
                raise StopError

        whole, broken = calibrated(parent), calibrated(parent)
        trainer(whole).run(lambda done: source, lambda p: None, every=1)
        first = trainer(broken)
        with pytest.raises(StopError):
            first.run(lambda done: source, stop, every=1)
        second = trainer(broken)
        second.load_state(first.state())
        second.run(lambda done: source, lambda p: None, every=1)
        assert second.step == 6
        for (name, a), b in zip(whole.state_dict().items(), broken.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=name)

    def test_resume_on_the_command_line(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("train", made / "cal.pt", "--images", 64, "--batch", 16, "--size", 48, "--device", "cpu")
        run(*words, "--epochs", 1, "--out", made / "r.pt")
        assert checkpoint.load_extra(made / "r.pt")["run"]["step"] == 4
        run(*words, "--epochs", 2, "--out", made / "r.pt", "--resume")
        assert checkpoint.load_extra(made / "r.pt")["run"]["step"] == 8

    def test_an_exploded_loss_ends_the_run(self, parent: ResNet) -> None:
        with torch.no_grad():
            parent.fc.bias.fill_(float("nan"))
        schedule = train.Schedule(steps=2, seconds=None, lr=1e-3)
        trainer = train.Trainer(parent, schedule, train.forward_of(parent, CPU, compiled=False))
        with pytest.raises(FinetuneError, match="--lr"):
            trainer.run(lambda done: data.Procedural(CPU, 4, 48, 0, classes=16), lambda p: None, every=1)


class TestData:
    def test_training_and_test_images_never_meet(self) -> None:
        seen = data.Procedural(CPU, 4, 32, 0).batch(0)[0]
        fresh = data.Procedural(CPU, 4, 32, 0, held_out=True).batch(0)[0]
        again = data.Procedural(CPU, 4, 32, 0).batch(0)[0]
        assert torch.equal(seen, again)
        assert not torch.equal(seen, fresh)

    def test_each_process_has_images_of_its_own(self) -> None:
        sources = [data.Procedural(CPU, 8, 32, 0, rank=r, world=2) for r in range(2)]
        batches = [s.batch(i)[0] for i in range(2) for s in sources]
        for i in range(4):
            for j in range(i):
                assert not torch.equal(batches[i], batches[j])

    def test_input_integers(self) -> None:
        x = torch.tensor([-3.0, -2.64, 0.0, 2.64, 9.0, 2.64 * 2.4 / 127, 2.64 * 2.6 / 127])
        assert quantize_input(x).tolist() == [-127, -127, 0, 127, 127, 2, 3]

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for name in ("b", "a"):
            (tmp_path / "tree" / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((50, 70, 3), 40 if name == "a" else 200, np.uint8)
                pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "tree" / name / f"{i}.png")
        return tmp_path / "tree"

    def test_image_folder(self, tree: Path) -> None:
        source = data.Folder(tree, CPU, 4, 32, 0, workers=0)
        seen = [source.batch(step) for step in range(3)]
        labels = torch.cat([labels for _, labels in seen])
        assert sorted(labels[:6].tolist()) == sorted(labels[6:].tolist()) == [0, 0, 0, 1, 1, 1]
        for images, labels in seen:
            assert images.shape == (4, 3, 32, 32)
            assert torch.equal((images.mean((1, 2, 3)) > 0).long(), labels)
        again = data.Folder(tree, CPU, 4, 32, 0, workers=0).batch(2)
        assert torch.equal(again[0], seen[2][0]), "a resumed run must see the same images"

    def test_evaluation_takes_every_image_once(self, tree: Path) -> None:
        found = list(data.evaluation_files(tree, CPU, 4, 32, 0))
        assert torch.cat([labels for _, labels in found]).tolist() == [0, 0, 0, 1, 1, 1]

    def test_map_files(self, tree: Path) -> None:
        (tree / "map.txt").write_text("a/0.png\t7\nb/1.png 3\n\n")
        assert data.list_images(tree, 8) == [(tree / "a" / "0.png", 7), (tree / "b" / "1.png", 3)]
        (tree / "map.txt").write_text("a/0.png\t7\nb/1.png\n")
        with pytest.raises(FinetuneError, match=r"map\.txt:2: "):
            data.list_images(tree, 8)
        (tree / "map.txt").write_text("a/0.png\nb/1.png\n")
        with pytest.raises(FinetuneError, match="no labels"):
            data.list_images(tree, 8)

    def test_labels_are_classes_of_the_model(self, tree: Path) -> None:
        with pytest.raises(FinetuneError, match=r"b/0\.png: label 1 is no class of the model, which are 0 to 0"):
            data.Folder(tree, CPU, 4, 32, 0, classes=1, workers=0)
        (tree / "map.txt").write_text("a/0.png\t7\nb/1.png 8\n")
        with pytest.raises(FinetuneError, match=r"b/1\.png: label 8 is no class"):
            data.list_images(tree, 8)

    def test_errors_name_the_file(self, tree: Path) -> None:
        with pytest.raises(FinetuneError, match="missing"):
            data.list_images(tree / "missing", 8)
        (tree / "a" / "0.png").write_text("no image")
        with pytest.raises(FinetuneError, match=r"0\.png"):
            list(data.evaluation_files(tree, CPU, 4, 32, 0))

    def test_files_are_taken_by_the_pipelines_rules(self, tree: Path) -> None:
        """Grey of 16 bits would be one flat colour, and PostScript starts a program."""
        path = tree / "a" / "0.png"
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(path)
        with pytest.raises(FinetuneError, match=r"0\.png: 16-bit grey"):
            data.load_image(path, 32, None)
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n")
        with pytest.raises(FinetuneError, match=r"0\.png: not an image, or none of JPEG"):
            data.load_image(path, 32, None)


def test_without_torch_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["export", "x.pt", "--out", str(tmp_path)]) == 1
    assert f"pip install -e '{ROOT}[train]'" in capsys.readouterr().err
