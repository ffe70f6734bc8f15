"""A session whose engines decode files themselves: what they cannot decode well comes back and is a loader's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from int4core import Engine, Model
from pipeline.device.scheduler import Sizes
from pipeline.errors import PipelineError
from pipeline.jpeg.parse import HEADER
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.samples.preprocess import Preprocessor
from pipeline.session import batches as batches_module
from pipeline.session.progress import Progress
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from pipeline.stages.channels import Rates, Task
from pipeline.stages.load import Preparation
from pipeline.stages.process import ProcessStage
from pipeline.stages.spec import EngineSpec
from pipeline.telemetry.metrics import Decoded
from pipeline.telemetry.trace import Untraced
from tests.pipeline.conftest import IMAGES, SIZE

RESIZE = round(SIZE * 256 / 224)
TOP = 2
SUSPICIOUS = b"suspicious"


class DecodingEngine:
    """Computes on the CPU, and decodes what lies in slots by Pillow; files with a mark it says are hurt."""

    tracer = Untraced()

    def __init__(self, spec: EngineSpec, number: int) -> None:
        assert spec.sampling is not None
        self._arena, self._exchange = Arena.attach(spec.arena), Exchange.attach(spec.exchange)
        self._engine = Engine(Model.load(spec.model), backend="numpy", batch_size=spec.batch_size)
        self._preprocessor = Preprocessor(spec.sampling.size, spec.sampling.resize)

    def note(self) -> str:
        return "decoding"

    def notices(self) -> tuple[str, ...]:
        return ()

    def rates(self) -> Rates:
        return Rates()

    def work(self, task: Task[int]) -> None:
        slots = self._exchange.slots(task.body, task.samples)
        batch = self._arena.gather(slots)
        words = np.zeros(len(slots), np.int32)
        for row, slot in enumerate(slots.tolist()):
            if length := int(self._arena.lengths[slot]):
                data = self._arena.raw(slot)[HEADER.itemsize : HEADER.itemsize + length].tobytes()
                self._preprocessor.decode_bytes(data, "image", batch[row])
                words[row] = 16 if SUSPICIOUS in data else 0
        ids, scores = self._engine.top_k(batch, TOP)
        classes = np.where(words != 0, -words, ids[:, 0])
        for place, values in zip(self._exchange.answers(task.body, task.samples), (classes, ids, scores), strict=True):
            place[:] = values

    def close(self) -> None:
        self._exchange.close()
        self._arena.close()


def stage(spec: EngineSpec, **options: Any) -> ProcessStage[int, None]:
    make = partial(DecodingEngine, spec)
    capacity = (spec.exchange.records + 1) * spec.batch_size
    return ProcessStage("infer", make, workers=1, capacity=capacity, depth=spec.inflight + 1, **options)


@pytest.fixture
def spec(model_dir: Path) -> SessionSpec:
    return SessionSpec(
        model=model_dir,
        backend="cuda",
        backend_options=None,
        sizes=Sizes.full(4),
        input_shape=(3, SIZE, SIZE),
        preparation=Preparation("images", SIZE, RESIZE, decode="gpu"),
        loaders=1,
        top=TOP,
        hold_s=0.05,
        room=64 << 10,
    )


def test_answers_are_those_of_loaders_whoever_decoded(
    spec: SessionSpec, model_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "infer_stage", stage)
    paths = [images / f"{number}.jpg" for number in range(IMAGES)]
    for number in (3, 4, 17):  # with a comment that the engine takes for a sign of damage
        data = paths[number].read_bytes()
        paths[number] = tmp_path / f"{number}.jpg"
        paths[number].write_bytes(data[:2] + b"\xff\xfe\x00\x0c" + SUSPICIOUS + data[2:])
    with Image.open(paths[5]) as image:
        paths[5] = tmp_path / "5.png"
        image.save(paths[5])
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    x = np.empty((IMAGES, 3, SIZE, SIZE), dtype=np.int8)
    for sample, path in zip(x, paths, strict=True):
        Preprocessor(SIZE, RESIZE).decode_into(path, sample)
    ids, scores = Engine(Model.load(model_dir)).top_k(x, TOP)
    with Session(spec) as session:
        session.start()
        answers = list(session.classify([*paths, tmp_path / "bad.jpg"]))
        assert session.leases == 0
        # Those that came back were left for the engines before.
        gone = sum(path.stat().st_size for path in paths if path.suffix == ".jpg")
        by_loaders = {"not a JPEG file": 1, "invalid code in the scan": 3}
        assert session.loading.decoded(0.5) == Decoded(IMAGES - 4, gone * 0.5, by_loaders)
        progress = Progress(session)
        assert progress.snapshot().decoded == Decoded(IMAGES - 4, 0.0, by_loaders)
        progress.enter("running")
        progress.add(IMAGES + 1)
        decoded = progress.snapshot().decoded
        assert decoded is not None
        assert decoded.gpu_bytes_per_s == pytest.approx(gone * progress.rate / (IMAGES + 1))
    assert answers.pop().error == "not an image, or none of JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"
    assert [a.classes for a in answers] == [tuple(row) for row in ids.tolist()]
    assert [a.scores for a in answers] == [tuple(row) for row in scores.tolist()]


def test_where_loaders_decode_nothing_is_said_of_it(spec: SessionSpec) -> None:
    preparation = replace(spec.preparation, decode="cpu")
    with Session(replace(spec, backend="numpy", preparation=preparation)) as session:
        assert session.loading.decoded(1.0) is None
        assert Progress(session).snapshot().decoded is None


def test_the_cpus_engine_takes_samples_alone(spec: SessionSpec) -> None:
    with Session(replace(spec, backend="numpy")) as session, pytest.raises(PipelineError, match="choose --decode cpu"):
        session.start()
