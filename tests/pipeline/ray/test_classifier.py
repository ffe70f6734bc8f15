"""Datasets of images through actors: the answers are those of one session, whatever becomes of the actors."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from int4core import Engine, Model
from pipeline.errors import PipelineError
from pipeline.ray import Classifier, classify
from pipeline.ray.cluster import Layout
from pipeline.ray.dataset import map_images
from pipeline.samples.preprocess import Preprocessor
from tests.pipeline.application import lives
from tests.pipeline.conftest import SIZE, wait_for

TOP = 3
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def best(model_dir: Path, images: Path) -> list[tuple[list[int], list[float]]]:
    """Classes and scores of the images in order of their names, computed in this process."""
    paths = sorted(images.glob("*.jpg"))
    x = np.empty((len(paths), 3, SIZE, SIZE), dtype=np.int8)
    for sample, path in zip(x, paths, strict=True):
        Preprocessor(size=SIZE, resize=round(SIZE * 256 / 224)).decode_into(path, sample)
    ids, scores = Engine(Model.load(model_dir)).top_k(x, TOP)
    return list(zip(ids.tolist(), scores.tolist(), strict=True))


def settings(model_dir: Path) -> dict[str, Any]:
    return {"model": model_dir, "top": TOP, "loaders": 1, "cpu_backend": "numpy"}


def same(row: dict[str, Any], wanted: tuple[list[int], list[float]]) -> bool:
    ids, scores = wanted
    return (
        row["error"] is None
        and (row["class_id"], row["score"]) == (ids[0], scores[0])
        and (row["top_ids"], row["top_scores"]) == (ids, scores)
    )


def test_a_table_of_bytes_or_paths_comes_back_with_answers(
    model_dir: Path, images: Path, image_bytes: list[bytes], best: list, tmp_path: Path
) -> None:
    """The class itself, without Ray."""
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"class {n}\n" for n in range(10)))
    paths = [str(path) for path in sorted(images.glob("*.jpg"))]
    classifier = Classifier(**settings(model_dir), classes=classes, gpu="cpu", batch_size=4)
    try:
        table = pa.table({"id": range(len(paths)), "image": [*image_bytes[:-2], b"no image", None]})
        out = classifier(table)
        assert out.column_names == ["id", "class_id", "class_name", "score", "top_ids", "top_scores", "error"]
        rows = out.to_pylist()
        assert [row["id"] for row in rows] == list(range(len(paths)))
        assert all(same(row, wanted) for row, wanted in zip(rows[:-2], best[:-2], strict=True))
        assert rows[0]["class_name"] == f"class {rows[0]['class_id']}"
        assert "not an image" in rows[-2]["error"]
        assert rows[-1]["error"] == "nothing in column image of this row"
        assert rows[-1]["class_id"] is None
        rows = classifier(pa.table({"path": paths})).to_pylist()
        assert [row["path"] for row in rows] == paths
        assert all(same(row, wanted) for row, wanted in zip(rows, best, strict=True))
        struct = [{"bytes": data, "path": None} for data in image_bytes[:2]] + [{"bytes": None, "path": paths[2]}]
        assert all(map(same, classifier(pa.table({"image": struct})).to_pylist(), best))
        assert len(classifier(pa.table({"image": pa.array([], pa.binary())}))) == 0
        with pytest.raises(PipelineError, match="a column score already; rename it"):
            classifier(pa.table({"image": image_bytes[:1], "score": [1.0]}))
        with pytest.raises(PipelineError, match="the dataset: no column of bytes or of paths; its columns are id"):
            classifier(pa.table({"id": [1]}))
        # An engine that dies takes its session with it, and the next one answers the call.
        os.kill(classifier._work.session.batches.infer.pids[0], signal.SIGKILL)
        assert all(map(same, classifier(pa.table({"path": paths})).to_pylist(), best))
    finally:
        classifier.close()


# What a loader of the run below imports when it starts: an image that begins so ends its process.
DEADLY = b"KILL"
SITE = f"""
import os, signal
from PIL import Image
real = Image.open
def open_(file, *more, **named):
    start = file.read(4)
    file.seek(0)
    if start == {DEADLY!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(file, *more, **named)
Image.open = open_
"""
TIMES = 20


@dataclass(frozen=True)
class BadDay:
    """What came out of it: the rows in order, the actor that was killed, and the processes that were its own."""

    rows: list[dict[str, Any]]
    killed: psutil.Process
    children: list[psutil.Process]


@pytest.fixture(scope="module")
def bad_day(
    cluster: Any, model_dir: Path, image_bytes: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> BadDay:
    """A run of two actors, of which one is killed while it works, over images of which one kills loaders."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "pids").mkdir()

    def wait_for_both() -> list[Path]:
        """What says that an actor has answered something, of both: the first leaves work for one that starts late."""
        deadline = time.monotonic() + PATIENCE_S
        while len(there := list((folder / "pids").iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return there

    class Followed(Classifier):
        """Says where it is, so that it can be killed; its loaders die of some images."""

        def __init__(self, **named: Any) -> None:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
            super().__init__(**named)

        def __call__(self, table: pa.Table) -> pa.Table:
            out = super().__call__(table)
            children = psutil.Process().children(recursive=True)
            # Whole at once: the killer reads it as soon as it is there, and several calls run at a time.
            written = folder / f"{os.getpid()}-{threading.get_ident()}.part"
            written.write_text(" ".join(str(child.pid) for child in children))
            written.replace(folder / "pids" / f"{os.getpid()}")
            wait_for_both()
            return out.append_column("pid", pa.array([os.getpid()] * len(out)))

    killed: list[psutil.Process] = []
    children: list[psutil.Process] = []

    def kill_one() -> None:
        there = wait_for_both()
        killed.append(psutil.Process(int(there[0].name)))
        for child in there[0].read_text().split():
            with suppress(psutil.NoSuchProcess):  # an image has killed it since
                children.append(psutil.Process(int(child)))
        killed[0].kill()

    images = image_bytes * TIMES
    images[len(image_bytes)] = DEADLY
    table = pa.table({"id": range(len(images)), "image": images})
    dataset = cluster.data.from_arrow(table).repartition(TIMES)
    killer = threading.Thread(target=kill_one)
    killer.start()
    answers = map_images(dataset, Followed, settings(model_dir), Layout(2, 0.5, 0, 1), batch=8)
    rows = pa.concat_tables(cluster.get(answers.to_arrow_refs())).sort_by("id").to_pylist()
    killer.join()
    return BadDay(rows, *killed, children)


def test_two_actors_give_the_rows_of_one_machine_though_one_is_killed(bad_day: BadDay, best: list) -> None:
    rows = bad_day.rows
    assert [row["id"] for row in rows] == list(range(TIMES * len(best)))
    wrong = [n for n, row in enumerate(rows) if not same(row, best[n % len(best)])]
    assert wrong == [len(best)]
    assert len({row["pid"] for row in rows} - {bad_day.killed.pid}) >= 1
    gone = {bad_day.killed, *bad_day.children}
    assert len(gone) > 1
    wait_for(lambda: not any(map(lives, gone)))


def test_an_image_that_kills_loaders_is_a_row_with_an_error_and_its_actor_lives(bad_day: BadDay, best: list) -> None:
    row = bad_day.rows[len(best)]
    assert "its loader was killed by SIGKILL" in row["error"]
    assert row["class_id"] is None
    neighbours = bad_day.rows[len(best) + 1 : len(best) + 8]
    assert {row["pid"] for row in neighbours} == {row["pid"]}


def test_a_dataset_is_laid_out_on_the_cluster_and_read_lazily(
    cluster: Any, model_dir: Path, images: Path, image_bytes: list[bytes], best: list, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": image_bytes, "name": list(map(str, range(len(best))))}), tmp_path / "t.parquet")
    dataset = cluster.data.read_parquet(str(tmp_path / "t.parquet"))
    answers = classify(dataset, model_dir, top=TOP, batch_size=8, cpu_backend="numpy")
    rows = sorted(answers.take_all(), key=lambda row: int(row["name"]))
    assert len(rows) == len(best)
    assert all(
        same(row | {"top_ids": list(row["top_ids"]), "top_scores": list(row["top_scores"])}, wanted)
        for row, wanted in zip(rows, best, strict=True)
    )
