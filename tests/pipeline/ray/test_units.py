"""How arguments are parted for the tasks that list them, and how actors are laid out. No Ray is needed."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from pipeline.errors import PipelineError
from pipeline.ray import classify
from pipeline.ray.cluster import Layout, lay_out
from pipeline.ray.listing import PART, Listed, Listing, list_sources
from pipeline.ray.progress import Progress
from pipeline.ray.run import Run, connect
from pipeline.ray.units import NAMED_IN_A_PART, parted
from pipeline.samples.expand import expand
from pipeline.telemetry.meter import Meter


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/1.jpg", "a/2.jpg", "c/3.jpg", "x.jpg", "y.jpg", "z.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for number in range(3):
        Path(f"s{number}.tar").write_bytes(bytes(1024))
    Path("list.txt").write_text("x.jpg\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["a", "c"], [("a",), ("c",)]),
        (["s{0..2}.tar"], [("s0.tar",), ("s1.tar",), ("s2.tar",)]),
        (["s*.tar", "c"], [("s0.tar",), ("s1.tar",), ("s2.tar",), ("c",)]),
        (["x.jpg", "y.jpg", "a", "z.jpg"], [("x.jpg", "y.jpg"), ("a",), ("z.jpg",)]),
        # Whatever may give a key twice is listed by one task.
        (["a", "c", "a/b/1.jpg"], [("a", "a/b/1.jpg"), ("c",)]),
        (["a/b", "c", "a/"], [("a/b", "a/"), ("c",)]),
        (["s0.tar", "c", "s0.tar"], [("s0.tar", "s0.tar"), ("c",)]),
        (["a/*.jpg", "c", "a/2.jpg"], [("a/*.jpg", "a/2.jpg"), ("c",)]),
        (["a", "@list.txt", "c"], [("a", "@list.txt", "c")]),
        (["a", "-"], [("a", "-")]),
    ],
)
def test_arguments_are_parted_where_no_key_can_be_in_two_parts(arguments: list[str], parts: list) -> None:
    assert parted(arguments) == parts
    if "-" not in arguments:
        keys = [{source.key for source in expand(part)} for part in parts]
        assert sum(map(len, keys)) == len(set.union(*keys))


def test_images_that_are_named_one_by_one_are_listed_some_thousand_at_a_time() -> None:
    folder = Path("many")
    folder.mkdir()
    names = [f"many/{n}.jpg" for n in range(NAMED_IN_A_PART + 3)]
    for name in names:
        os.link("x.jpg", name)
    assert [len(part) for part in parted(names)] == [NAMED_IN_A_PART, 3]


def test_what_other_machines_cannot_read_is_refused() -> None:
    os.mkfifo("pipe")
    with pytest.raises(PipelineError, match="no regular file, so other machines cannot read it; give the list as -"):
        parted(["@pipe"])
    with pytest.raises(PipelineError, match="nothing: there is no such file or folder"):
        parted(["nothing"])


@pytest.mark.parametrize(
    ("nodes", "gpu", "actors", "layout"),
    [
        ([{"CPU": 2}], "auto", None, Layout(1, 0.5, 0, 1)),
        ([{"CPU": 2}], "auto", 2, Layout(2, 0.25, 0, 1)),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 32, "GPU": 2}, {"CPU": 8}], "auto", None, Layout(3, 14.0, 1, 14)),
        ([{"CPU": 128, "GPU": 8}] * 2, "h100", None, Layout(16, 15.0, 1, 15)),
        ([{"CPU": 128, "GPU": 8}, {"CPU": 4}], "cpu", None, Layout(2, 2.0, 0, 2)),
    ],
)
def test_actors_are_laid_out_on_what_a_cluster_has(
    nodes: list[dict[str, float]], gpu: str, actors: int | None, layout: Layout
) -> None:
    assert lay_out(nodes, gpu, actors) == layout


@pytest.mark.parametrize(
    ("nodes", "gpu", "actors", "sentence"),
    [
        ([{"CPU": 1}], "auto", None, "no node with 2 CPUs"),
        ([{"CPU": 2}], "h100", None, "no node with a GPU, and --gpu h100 was asked for"),
        ([{"CPU": 8, "GPU": 1}], "auto", 2, "2 actors: the Ray cluster has 1 GPUs"),
    ],
)
def test_what_a_cluster_cannot_hold_is_an_error(
    nodes: list[dict[str, float]], gpu: str, actors: int | None, sentence: str
) -> None:
    with pytest.raises(PipelineError, match=sentence):
        lay_out(nodes, gpu, actors)


def test_without_ray_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for asked in (lambda: connect("local"), lambda: classify(None)):
        with pytest.raises(
            PipelineError, match=r"needs ray, which cannot be imported .*pip install .*\[ray\]"
        ) as raised:
            asked()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [Exception, ConnectionError, ValueError])
def test_a_cluster_that_does_not_start_is_an_error_with_its_first_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise kind("The current node timed out during startup.\nMore of it.")

    ray = ModuleType("ray")
    vars(ray).update(is_initialized=lambda: False, init=init)
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ModuleType("ray.data"))
    with pytest.raises(PipelineError, match=r"^--ray local: The current node timed out during startup\.; `ray status`"):
        connect("local")


def test_what_was_listed_last_is_counted_when_the_run_is_over() -> None:
    """Snapshots ask for it now and then, and none may have since."""
    library = MagicMock()
    library.get.return_value = Listed(seen=9, skipped=2)
    run = Run(library, MagicMock(), Layout(1, 1.0, 0, 1))
    assert run.listed().skipped == 2
    snapshot = run.progress.snapshot()
    assert (snapshot.completed, snapshot.expected) == (2, 9)


def test_a_rate_may_be_asked_for_while_the_first_rows_are_counted() -> None:
    rates: list[float] = []

    class Asked(Progress):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if asking:
                rates.append(self.rate)

    asking = False
    progress, asking = Asked(1, lambda: None), True
    progress.add(7)
    assert rates[-1] > 0
    assert min(rates) == 0


def test_a_run_may_end_while_a_snapshot_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator has done counts once."""
    metrics = SimpleNamespace(rows_task_outputs_generated=7, num_row_inputs_received=7, num_tasks_running=0)
    executor = SimpleNamespace(_topology=(SimpleNamespace(name="MapBatches(deliver)", metrics=metrics),))
    progress = Progress(1, lambda: None, SimpleNamespace(_current_executor=executor))
    ending, add = threading.Thread(target=progress.end), Meter.add

    def ended_meanwhile(*work: Any) -> None:
        if ending.ident is None:
            ending.start()
            ending.join(0.5)  # where it may not yet, it waits for whoever takes the snapshot
        add(*work)

    monkeypatch.setattr(Meter, "add", ended_meanwhile)
    stages = progress.snapshot().stages
    ending.join()
    for some in (stages, progress.snapshot().stages):
        assert [(stage.name, stage.done, stage.counted) for stage in some] == [("write", 7, 7)]


def test_what_a_part_comes_to_has_been_counted_when_its_listing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks afterwards may be heard before what was said and not waited for."""
    arrow = pytest.importorskip("pyarrow")
    counted: list[Listed] = []
    library = ModuleType("ray")
    monkeypatch.setattr(library, "get", lambda call: call(), raising=False)
    monkeypatch.setitem(sys.modules, "ray", library)
    report = SimpleNamespace(remote=lambda number, listed: lambda: counted.append(listed))
    listing = Listing(None, (0, 1), None, lambda path: False, SimpleNamespace(report=report))
    places = pickle.dumps((0, ("a",)))
    assert len(list(list_sources(arrow.table({PART: [places]}), listing))) == 1
    assert [(listed.seen, listed.ended) for listed in counted] == [(2, 1)]
