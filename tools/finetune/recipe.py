"""How the default model is made: parent, calibration, straight-through training, export, in a time budget.

Every step gets a share of the minutes asked for, start-up and compilation included, so that the whole
ends in time on a machine that is only lent. Results are written after every step.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from int4core.engine import Engine
from int4core.model import Model
from pipeline.samples.classes import CLASSES_NAME
from tools.finetune import checkpoint
from tools.finetune.convert import build, make_room, reestimate
from tools.finetune.data import Batch, Procedural, Source, evaluation_files
from tools.finetune.export import to_model
from tools.finetune.qresnet import QuantResNet, exact
from tools.finetune.ranges import choose_step, collect, plot_histograms, save_histograms
from tools.finetune.report import reporting
from tools.finetune.resnet import Architecture, ResNet
from tools.finetune.train import Forward, Schedule, Trainer, accuracy, forward_of
from tools.finetune.verify import compare
from tools.shapes.files import draw_specs, make
from tools.shapes.names import names_text


@dataclass(frozen=True)
class Recipe:
    """Sizes and settings; the defaults are for a ResNet-50 on one H200.

    Attributes:
        minutes: wall time for everything up to the engine's check.
        parent_share: of that time, for the parent's training.
        reserve_seconds: kept for what follows the fine-tuning, which gets all the time in between, its
            compilation included, but never less than a tenth of the whole.
        sizes: (share of the parent's training from which it holds, image side), growing.
        final_size: image side of calibration, fine-tuning, evaluation and the model.
        test_images: fresh images for the accuracies.
        exact_images: how many of them also run in exact integers (float64).
        jpegs: image files rendered, written, and read again as a user's are.
        engine_images: how many of those run on the integer engine.
    """

    arch: Architecture
    minutes: float = 8.0
    parent_share: float = 0.50
    reserve_seconds: float = 45.0
    sizes: tuple[tuple[float, int], ...] = ((0.0, 96), (0.4, 128), (0.86, 224))
    final_size: int = 224
    parent_batch: int = 512
    quantised_batch: int = 256
    parent_lr: float = 0.8
    quantised_lr: float = 1e-4
    distill: float = 0.5
    marginals: float = 0.3
    calibration_batches: int = 16
    test_images: int = 10_000
    exact_images: int = 10_000
    jpegs: int = 1000
    engine_images: int = 64
    percentile: float = 99.999
    range_method: str = "mse"
    seed: int = 0
    compile_quantised: bool = True
    compile_parent: bool = False


class _Run:
    def __init__(self, recipe: Recipe, out: Path, work: Path, device: torch.device) -> None:
        self.r, self.out, self.work, self.device = recipe, out, work, device
        self.layout: Any = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.start = time.perf_counter()
        self.results: dict[str, Any] = {"recipe": asdict(recipe), "torch": torch.__version__, "seconds": {}}
        if device.type == "cuda":
            self.results["device"] = torch.cuda.get_device_name(device)
        self.plot: Callable[[], None] = lambda: None
        self._sources: dict[tuple[int, int, bool], Procedural] = {}

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def note(self, **values: Any) -> None:
        """Print results, and write all results so far."""
        self.results.update(values)
        self.results["elapsed_s"] = round(self.elapsed, 1)
        (self.out / "results.json").write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")
        for name, value in values.items():
            print(f"[{self.elapsed:6.1f} s] {name} = {value}", flush=True)

    def timed(self, name: str, step: Callable[[], Any]) -> Any:
        before = self.elapsed
        result = step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.results["seconds"][name] = round(self.elapsed - before, 1)
        self.note()
        print(f"[{self.elapsed:6.1f} s] {name} took {self.elapsed - before:.1f} s", flush=True)
        return result

    def source(self, size: int, batch: int, *, held_out: bool = False) -> Procedural:
        key = (size, batch, held_out)
        if key not in self._sources:
            self._sources[key] = Procedural(
                self.device,
                batch,
                size,
                self.r.seed,
                classes=self.r.arch.classes,
                held_out=held_out,
                fused=self.device.type == "cuda",
            )
        return self._sources[key]

    def test_batches(self, images: int) -> Iterator[Batch]:
        """The first `images` of the fresh test images, always the same ones."""
        batch = min(100, images)
        source = self.source(self.r.final_size, batch, held_out=True)
        for step in range(images // batch):
            yield source.batch(step)

    def test(self, name: str, forward: Forward, images: int) -> float:
        found = self.timed(f"test {name}", lambda: accuracy(forward, self.test_batches(images)))
        self.note(**{name: found})
        return float(found)

    def train(self, name: str, trainer: Trainer, source: Callable[[float], Source]) -> None:
        speeds: list[float] = []

        with reporting(name) as reporter:

            def report(p: Any) -> None:
                reporter.training(p)
                speeds.append(p.images_per_second)

            trainer.run(source, report)
        self.note(**{f"{name}_steps": trainer.step, f"{name}_images_per_s_last": round(speeds[-1])})

    # The steps, in order.

    def parent(self) -> ResNet:
        r = self.r
        torch.manual_seed(r.seed)
        parent = ResNet(r.arch)
        parent.to(device=self.device, memory_format=self.layout)
        schedule = Schedule(
            steps=None,
            seconds=r.minutes * 60 * r.parent_share,
            lr=r.parent_lr,
            marginals=r.marginals if r.arch.classes == 1000 else 0.0,
        )

        def source(done: float) -> Source:
            size = [s for since, s in r.sizes if done >= since][-1]
            return self.source(size, r.parent_batch)

        forward = forward_of(parent, self.device, compiled=r.compile_parent)
        self.train("parent", Trainer(parent, schedule, forward), source)
        parent.eval()
        checkpoint.save(self.work / "parent.pt", parent)
        return parent

    def calibrate(self, parent: ResNet) -> QuantResNet:
        r = self.r
        source = self.source(r.final_size, min(64, r.quantised_batch))

        def batches(first: int) -> Iterator[torch.Tensor]:
            return (source.batch((1 << 20) + first + i)[0] for i in range(r.calibration_batches))

        histograms = collect(parent, lambda: batches(0))
        hi = {name: tensor_range.hi for name, tensor_range in QuantResNet(parent).ranges()}
        steps = {n: choose_step(h, hi[n], r.range_method, r.percentile) for n, h in histograms.items()}
        save_histograms(histograms, self.out / "histograms.npz")
        self.plot = lambda: plot_histograms(histograms, steps, hi, self.out / "histograms.png")
        model = build(parent, steps)
        reestimate(model, parent, batches(r.calibration_batches))
        model.to(memory_format=self.layout)
        return model

    def fine_tune(self, model: QuantResNet, parent: ResNet) -> None:
        r = self.r
        teacher = forward_of(parent, self.device, compiled=False)
        source = self.source(r.final_size, r.quantised_batch)
        forward = forward_of(model, self.device, compiled=r.compile_quantised)
        if r.compile_quantised:
            before = self.elapsed
            try:
                forward(source.batch(0)[0]).sum().backward()
                self.note(compile_s=round(self.elapsed - before, 1))
            except Exception as error:
                # A compiler that fails on some machine costs speed; it need not cost the run.
                traceback.print_exc()
                self.note(compile_failed=repr(error)[:300])
                forward = forward_of(model, self.device, compiled=False)
            model.zero_grad(set_to_none=True)
        left = r.minutes * 60 - r.reserve_seconds - self.elapsed
        schedule = Schedule(
            steps=None,
            seconds=max(left, r.minutes * 6),
            lr=r.quantised_lr,
            distill=r.distill,
            smoothing=0.0,
        )
        # Steps of its own, so that it sees none of the parent's images again.
        offset = 1 << 21

        class Later:
            def batch(self, step: int) -> Batch:
                return source.batch(step + offset)

        later = Later()
        self.train("quantised", Trainer(model, schedule, forward, teacher), lambda done: later)
        with torch.no_grad():
            make_room(model)
        checkpoint.save(self.work / "quantised.pt", model)

    def export(self, model: QuantResNet, folder: Path) -> None:
        exported = to_model(model, self.r.final_size)
        exported.save(folder)
        (folder / CLASSES_NAME).write_text(names_text(exported.network.classes))

    def pack(self, folder: Path) -> None:
        with tarfile.open(self.out / "model.tar.gz", "w:gz") as archive:
            archive.add(folder, arcname="model")
        self.note(model_tar_bytes=(self.out / "model.tar.gz").stat().st_size)

    def engine(self, model: QuantResNet, folder: Path, jpegs: Path) -> None:
        """On the CPU, where `exact` and the engine both do their arithmetic in the same place."""
        batch = min(8, self.r.engine_images)
        model.to("cpu", memory_format=torch.contiguous_format)

        def some() -> Iterator[Batch]:
            cpu = torch.device("cpu")
            files = evaluation_files(jpegs, cpu, batch, self.r.final_size, 0)
            for _ in range(self.r.engine_images // batch):
                yield next(files)

        engine = Engine(Model.load(folder), backend="numpy", batch_size=batch)
        with engine, reporting("engine") as bar:
            found = compare(model, engine, some(), seen=lambda n: bar.count(n, self.r.engine_images))
        self.note(
            engine_images=found.images,
            engine_agreement=found.agreement,
            engine_accuracy=found.engine_right / found.images,
            engine_largest_difference=max(found.largest.values()),
        )


def run(recipe: Recipe, out: Path, work: Path, device: torch.device) -> dict[str, Any]:
    """Do the whole recipe; `out` gets results.json, histograms and model.tar.gz, `work` the large files.

    Returns the results, as written to results.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    this = _Run(recipe, out, work, device)
    parent = this.timed("parent", this.parent)
    this.test("fp32_top1", forward_of(parent, device, compiled=False), recipe.test_images)

    model = this.timed("calibrate", lambda: this.calibrate(parent))
    this.test("int4_calibrated_top1", forward_of(model, device, compiled=False), recipe.test_images)

    # What could not be exported later is better known before the long step.
    this.timed("export calibrated", lambda: this.export(model, work / "calibrated"))

    this.timed("fine_tune", lambda: this.fine_tune(model, parent))
    model.eval()
    folder = work / "model"
    this.timed("export", lambda: this.export(model, folder))
    this.timed("pack", lambda: this.pack(folder))
    this.test("int4_top1", forward_of(model, device, compiled=False), recipe.test_images)
    torch.backends.cudnn.benchmark = False
    this.test("int4_exact_top1", lambda x: exact(model, x), recipe.exact_images)

    jpegs = work / "jpegs"
    shutil.rmtree(jpegs, ignore_errors=True)
    specs = [replace(s, label=s.label % recipe.arch.classes) for s in draw_specs(recipe.jpegs, recipe.seed)]
    this.timed("jpegs", lambda: list(make(specs, jpegs)))
    workers = 8 if on_gpu else 0
    for name, forward in (
        ("fp32_jpeg_top1", forward_of(parent, device, compiled=False)),
        ("int4_jpeg_top1", forward_of(model, device, compiled=False)),
    ):
        files = evaluation_files(jpegs, device, 50, recipe.final_size, workers)
        this.note(**{name: accuracy(forward, files)})
    this.timed("engine", lambda: this.engine(model, folder, jpegs))
    this.timed("plot", this.plot)
    return this.results
