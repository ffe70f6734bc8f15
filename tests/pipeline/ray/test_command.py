"""The classify command on a cluster against the same on one machine: rows, outputs, resuming, what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.classify.__main__ import main
from pipeline.errors import PipelineError
from pipeline.ray.run import Run
from tests.paths import ROOT
from tests.pipeline.application import CPU, lives
from tests.pipeline.conftest import IMAGES, wait_for

PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def sources(images: Path, image_bytes: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Every kind of source, some images twice, a broken one, and what is passed over."""
    folder = tmp_path_factory.mktemp("sources")
    names = sorted(path.name for path in images.glob("*.jpg"))
    (folder / "images" / "below").mkdir(parents=True)
    for name in names[:8]:
        (folder / "images" / name).write_bytes((images / name).read_bytes())
    (folder / "images" / "below" / "bad.jpg").write_bytes(image_bytes[0][:300])
    (folder / "images" / "notes.txt").write_text("not an image\n")
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for name in names[8 + 4 * shard : 12 + 4 * shard]:
                tar.add(images / name, name)
    pq.write_table(pa.table({"image": image_bytes[16:20], "id": range(4)}), folder / "table.parquet", row_group_size=3)
    (folder / "list.txt").write_text("".join(f"{images / name}\n" for name in [*names[20:], names[20]]))
    return [
        folder / "images", folder / "images" / names[3], folder / "shard-{0..1}.tar", folder / "table.parquet",
        f"@{folder / 'list.txt'}", "--column", "image",
    ]  # fmt: skip


def classify(model: Path, *arguments: object) -> int:
    return main([*map(str, arguments), "--model", str(model), "--cpu-backend", "numpy", "--loaders", "1", "-b", "2"])


def on_cluster(model: Path, *arguments: object) -> int:
    return classify(model, *arguments, "--ray", "local")


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        parts = sorted(path.glob("part-*.parquet"), key=lambda part: int(part.stem.partition("-")[2]))
        return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def alone(model_dir: Path, sources: list[object], images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes of them."""
    out = tmp_path_factory.mktemp("alone") / "rows.parquet"
    assert classify(model_dir, *sources, "--labels", images / "map.txt", "--gpu", "cpu", "--out", out) == 0
    return out


@pytest.mark.parametrize("out", ["rows.parquet", "folder/", "rows.jsonl"])
def test_a_cluster_gives_the_rows_of_one_machine(
    out: str,
    cluster: Any,
    model_dir: Path,
    sources: list[object],
    images: Path,
    alone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert on_cluster(model_dir, *sources, "--labels", images / "map.txt", "--out", f"{tmp_path}/{out}") == 0
    wanted, rows = rows_of(alone), rows_of(tmp_path / out)
    if out.endswith("jsonl"):
        assert [row["key"] for row in rows] == [row["key"] for row in wanted]
        assert [row["top_ids"] for row in rows] == [row["top_ids"] for row in wanted]
    else:
        assert rows == wanted
    said = capsys.readouterr().out
    assert "ignored 1 file (.txt 1)" in said
    assert "2 sources answered before or named twice" in said
    assert "1 row has an error" in said
    assert f"{len(wanted)} rows in" in said
    folder = out.endswith("/")
    summary = json.loads((tmp_path / ("folder/_summary.json" if folder else f"{out}.summary.json")).read_text())
    reference = json.loads(Path(f"{alone}.summary.json").read_text())
    for name in ("rows", "errors", "skipped", "left_out", "accuracy"):
        assert summary[name] == reference[name], name
    assert summary["throughput"]["completed"] == len(wanted) + 2
    assert {stage["name"] for stage in summary["stages"]} == {"list", "classify", "write"}
    assert summary["settings"]["target"].startswith("Ray ")
    assert summary["engines"] == [{"note": engine["note"]} for engine in reference["engines"]]


def test_rows_on_standard_output_come_in_order(
    cluster: Any,
    model_dir: Path,
    sources: list[object],
    alone: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert on_cluster(model_dir, *sources, "--out", "-") == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [row["key"] for row in rows] == [row["key"] for row in rows_of(alone)]


def test_a_list_on_standard_input_and_urls_are_read_by_all(
    cluster: Any, model_dir: Path, sources: list[object], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is no file that tasks could read; a key that both name is answered once."""
    folder = Path(str(sources[0])).parent
    listed = [f"{images}/{number}.jpg" for number in range(6)]
    urls = [f"file://{folder}/shard-{{0..1}}.tar", f"file://{folder}/table.parquet", f"file://{images}/7.jpg"]
    keys = []
    for number, run in enumerate((classify, on_cluster)):
        names = "".join(f"{name}\n" for name in (*listed, urls[-1]))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
        out = tmp_path / f"{number}.parquet"
        where = ("--gpu", "cpu") if run is classify else ()
        assert run(model_dir, "-", *urls, "--column", "image", *where, "--out", out) == 0
        keys.append({row["key"]: row for row in rows_of(out)})
        assert len(keys[-1]) == len(rows_of(out)) == 6 + 8 + 4 + 1
    assert keys[0] == keys[1]
    assert set(listed) < set(keys[0])


def test_a_run_goes_on_where_it_was_and_a_finished_one_does_nothing(
    cluster: Any,
    model_dir: Path,
    sources: list[object],
    images: Path,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.parquet"
    arguments = (*sources, "--labels", images / "map.txt", "--out", out)
    real = Run.__iter__

    def broken(self: Run) -> Iterator[Any]:
        for number, delivered in enumerate(real(self)):
            yield delivered
            if number == 1:
                raise PipelineError("the cluster was needed for something else")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "__iter__", broken)
        assert on_cluster(model_dir, *arguments) == 1
    assert "the cluster was needed" in capsys.readouterr().err
    # Rows that no task had come to write.
    max(tmp_path.glob("rows.parquet.parts/part-*")).unlink()
    there = sum(pq.read_metadata(part).num_rows for part in tmp_path.glob("rows.parquet.parts/part-*"))
    assert 0 < there < len(rows_of(alone))
    assert on_cluster(model_dir, *arguments) == 0
    said = capsys.readouterr().out
    gone_on = re.search(r"going on after (\d+) rows?", said)
    assert gone_on is not None, said
    # A task of the run before that was at work still may have written its part in the meantime.
    earlier = int(gone_on[1])
    assert there <= earlier < len(rows_of(alone))
    assert f"{earlier + 2} sources answered before" in said
    key = lambda row: row["key"]  # noqa: E731
    assert sorted(rows_of(out), key=key) == sorted(rows_of(alone), key=key)
    assert (
        json.loads(Path(f"{out}.summary.json").read_text())["accuracy"]
        == (json.loads(Path(f"{alone}.summary.json").read_text())["accuracy"])
    )
    assert on_cluster(model_dir, *arguments) == 0
    assert "is complete" in capsys.readouterr().out
    # What a cluster began, one machine would go on with, and the other way round: it is the same output.
    assert classify(model_dir, *arguments, "--gpu", "cpu") == 0
    assert "is complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--gpus", "0"], 2, "--gpus: Ray gives each actor its GPU; leave it out with --ray"),
        (["--gpu", "h100"], 1, "the Ray cluster has no node with a GPU, and --gpu h100 was asked for"),
        (["/no/such/folder"], 1, "/no/such/folder: there is no such file or folder"),
        (["--ray", "images"], 2, "--ray images: an address is HOST:PORT, auto or local; sources go before --ray"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    status: int,
    sentence: str,
    cluster: Any,
    model_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray = [] if "--ray" in arguments else ["--ray"]
    try:
        ended = classify(model_dir, images, *arguments, "--out", tmp_path / "rows.csv", *ray)
    except SystemExit as error:
        ended = error.code
    said = capsys.readouterr().err
    assert ended == status
    assert sentence in said
    assert "Traceback" not in said


def test_why_an_actor_cannot_be_made_is_said_in_our_words(
    cluster: Any, model_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [images, "--model", model_dir, "--loaders", 1, "-b", 1 << 24, "--out", tmp_path / "rows.csv", "--ray"]
    assert main([*map(str, given), "local"]) == 1
    assert re.search(r"^error: /\S+: \d+ samples need .* of shared memory", capsys.readouterr().err, re.MULTILINE)


def test_memory_of_the_driver_does_not_grow_with_the_rows(cluster: Any, model_dir: Path, tmp_path: Path) -> None:
    """Ten times as many take no more; held in any form, 100,000 of these keys alone would be 20 MB."""
    for count in (10_000, 100_000):
        names = (f"{tmp_path}/{'long' * 40}/{number}.jpg\n" for number in range(count))
        (tmp_path / f"{count}.txt").write_text("".join(names))
    before = 0
    for count in (10_000, 10_000, 100_000):  # the first one is for what all runs need
        out = f"{tmp_path}/{count}-{before}/"
        before, held = own_memory(), before
        assert main([f"@{tmp_path}/{count}.txt", "--model", str(model_dir), "--cpu-backend", "numpy", "--loaders", "1",
                     "-b", "2048", "--ray", "--out", out]) == 0  # fmt: skip
    assert sum(pq.read_metadata(part).num_rows for part in Path(out).glob("part-*")) == 100_000
    assert own_memory() - before < 10 * 2**20, (held, before, own_memory())


def own_memory() -> int:
    """Bytes of this process that are its own."""
    return 1024 * int(re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[0])


# What a loader of the run below imports when it starts: an image that begins so takes until there is a certain file.
ENDLESS = b"WAIT"
SITE = """
import os, time
from PIL import Image
real, parent = Image.open, os.getppid()
def open_(file, *more, **named):
    start = file.read(4)
    file.seek(0)
    while start == {start!r} and not os.path.exists({over!r}) and os.getppid() == parent:
        time.sleep(0.01)
    return real(file, *more, **named)
Image.open = open_
"""


def test_an_interrupted_run_leaves_no_process_behind_and_goes_on(model_dir: Path, images: Path, tmp_path: Path) -> None:
    """In a process of its own, with a Ray of its own."""
    pytest.importorskip("ray", reason="needs Ray: make test WITH_RAY=1, or pip install 'ray[data]'")
    folder, site, over = tmp_path / "images", tmp_path / "site", tmp_path / "over"
    folder.mkdir()
    for number in range(40):
        os.link(images / f"{number % IMAGES}.jpg", folder / f"{number:02}.jpg")
    (folder / "40.jpg").write_bytes(ENDLESS)
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(start=ENDLESS, over=str(over)))
    out = tmp_path / "rows.jsonl"
    given = [
        sys.executable, "-m", "pipeline.classify", folder, "--model", model_dir, *CPU, "--loaders", "1",
        "-b", "2", "--ray", "--image-timeout", "3600", "--out", out,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {"args": list(map(str, given)), "cwd": ROOT, "env": os.environ | {"PYTHONPATH": path}}
    process = subprocess.Popen(**options, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    said = [next(line for line in process.stderr if line.startswith("running "))]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3
    process.send_signal(signal.SIGINT)
    said += process.stderr
    assert process.wait() == 128 + signal.SIGINT, said
    watchdog.cancel()
    assert "Traceback" not in "".join(said)
    wait_for(lambda: not any(map(lives, children)))
    there = sum(len(part.read_text().splitlines()) for part in tmp_path.glob("rows.jsonl.parts/part-*"))
    assert 0 < there <= 40
    over.touch()
    done = subprocess.run(**options, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"going on after {there} rows" in done.stdout
    assert sorted(row["key"] for row in rows_of(out)) == sorted(map(str, folder.iterdir()))
    assert [row["key"] for row in rows_of(out) if row["error"]] == [str(folder / "40.jpg")]
