"""Sources that a process of its own lists: the same as here, whatever happens to it; and their count."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.classify import counter as counter_module
from pipeline.classify import shards as shards_module
from pipeline.classify.ahead import AHEAD, TOGETHER, Ahead
from pipeline.classify.counter import Counter, CountingWorker
from pipeline.classify.intake import Intake
from pipeline.classify.lister import Lister
from pipeline.classify.listing import Listing
from pipeline.classify.total import Counted, Density, Total
from pipeline.errors import PipelineError
from pipeline.memory.segment import sweep_stale
from pipeline.samples.keys import KeySet, digests, escape_all
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import SOME, FailedLocator, Paths, Ranges, Source, Sources
from pipeline.session.session import Session
from pipeline.stages.base import StageFailure
from tests.paths import ROOT
from tests.pipeline.application import CPU
from tests.pipeline.classify.conftest import Classify, rows_in
from tests.pipeline.conftest import IMAGES, PATIENCE_S, all_ended, wait_for
from tests.pipeline.samples.expanded import touch, write_tar

MANY = 20_000
IN_A_SHARD = 2 * AHEAD


STARTED: list[Lister] = []


@pytest.fixture(autouse=True)
def nothing_left(clean: None) -> Iterator[None]:
    """After each test, however it has ended."""
    yield
    while STARTED:
        STARTED.pop().close()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A list of more names than are listed ahead of what is asked for; no file has them."""
    path = tmp_path / "many.txt"
    path.write_text("".join(f"{tmp_path}/none/{number:06}.jpg\n" for number in range(MANY)))
    return path


def of_every_kind(folder: Path) -> tuple[str, ...]:
    """Arguments of every kind, and more images than are sent together."""
    os.chdir(folder)
    touch("photos/a.jpg", "photos/.hidden.jpg", "photos/b/c.png", "photos/b/notes.txt", "photos/b/rows.csv")
    touch(*(f"photos/d/{number:04}.jpg" for number in range(SOME + 40)), "list/1.jpg", "list/\udcff.jpg")
    os.symlink("nowhere", "photos/broken.jpg")
    members = {"s/1.jpg": b"1", "s/1.cls": b"3", "s/2.cls": b"12", "s/2.jpg": b"2", "s/3.jpg": b"3", "s/x.json": b"{}"}
    write_tar("labelled.tar", members)
    write_tar("many.tar", {f"{number:05}.jpg": b"" for number in range(2 * TOGETHER + 5)})
    write_tar("photos/found.tar", {"in.jpg": b"in"})
    Path("damaged.tar").write_bytes(Path("many.tar").read_bytes()[: 512 * 100])
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "name": ["a", "b", "c"]}), "table.parquet")
    Path("names.txt").write_bytes(b"list/1.jpg\r\nlist/\xff.jpg\nlabelled.tar\nmissing.jpg\n\n")
    shards = ("labelled.tar", "many.tar", "damaged.tar")
    paths = ("photos", "@names.txt", "table.parquet", "list/{1,1}.jpg", "photos/**/*.png", "photos/*")
    return (*paths, *shards, f"file://{folder}/photos/b", f"file://{folder}/labelled.tar")


def apart(path: str) -> bool:
    return path.endswith(".csv")


def refuse(path: str) -> bool:
    raise PipelineError(f"{path}: the disk is gone; put it back")


def break_down(path: str) -> bool:
    raise RuntimeError(f"{path}: a mistake")


def listed_here(listing: Listing) -> tuple[list[Source], LeftOut]:
    left_out = LeftOut()
    return [source for some in listing.begin(left_out) for source in some], left_out


def started(listing: Listing, beside: int = 0) -> Lister:
    made = Lister(listing, beside)
    STARTED.append(made)
    made.start()
    return made


def children(there: Lister) -> list[psutil.Process]:
    """The processes that list shards for it, in the order of their numbers."""
    return sorted(psutil.Process(there.pid).children(), key=lambda child: child.create_time())


@pytest.mark.parametrize(("part", "labels", "beside"), [((0, 1), True, 0), ((0, 1), True, 2), ((1, 3), False, 3)])
def test_other_processes_list_the_same(
    part: tuple[int, int], labels: bool, beside: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listing = Listing(of_every_kind(tmp_path), part=part, labels=labels, apart=apart)
    expected, left_out = listed_here(listing)
    there = started(listing, beside)
    found: list[Source] = []
    seen: set[str] = set()
    for sources, their_digests, again in there:
        assert their_digests.tobytes() == digests(escape_all(sources.keys)).tobytes()
        known = (key in seen or key in sources.keys[:place] for place, key in enumerate(sources.keys))
        assert again == tuple(place for place, is_known in enumerate(known) if is_known)
        seen.update(sources.keys)
        found += sources
    assert len(seen) < len(found)
    assert found == expected
    assert (there.left_out.files, there.left_out.folders) == (left_out.files, left_out.folders)
    assert left_out.files[".csv"] == 0 < left_out.files[".txt"]
    assert labels == any(source.label is not None for source in found)
    there.close()


def test_what_comes_together_stays_in_columns() -> None:
    parts = [Sources([f"{n}"], Paths([f"{n}"])) for n in range(3000)]
    joined = list(Ahead(iter(parts)))
    assert Sources.joined(joined) == Sources.joined(parts) or [*Sources.joined(joined)] == [*Sources.joined(parts)]
    assert all(isinstance(some.locators, Paths) for some in joined)
    assert max(map(len, joined)) <= TOGETHER
    assert len(joined) < len(parts)


def test_no_more_is_listed_than_a_little_ahead() -> None:
    given = taken = 0

    def endless() -> Iterator[Sources]:
        nonlocal given
        while True:
            # What is taken is counted a moment later.
            assert given - taken <= AHEAD + 2 * (TOGETHER + SOME)
            names = [str(given + n) for n in range(SOME)]
            given += SOME
            yield Sources(names, Paths(names))

    for some in Ahead(endless()):
        assert some.keys[0] == str(taken)
        taken += len(some)
        if taken > 10 * AHEAD:
            break


def test_what_listing_raises_comes_after_what_was_listed_before() -> None:
    def sources() -> Iterator[Sources]:
        yield Sources(["a"], Paths(["a"]))
        raise RuntimeError("no more")

    ahead = iter(Ahead(sources()))
    assert next(ahead).keys == ["a"]
    with pytest.raises(RuntimeError, match="no more"):
        next(ahead)


@pytest.mark.parametrize(
    ("fails", "kind", "words"),
    [
        (refuse, PipelineError, r"^photos/notes\.txt: the disk is gone; put it back$"),
        (break_down, StageFailure, r"^stage list: worker 0 \(pid \d+\) failed: RuntimeError: .*a mistake$"),
    ],
)
def test_an_error_in_the_middle(
    fails: Any, kind: type[PipelineError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch("photos/a.jpg", "photos/notes.txt", "photos/z.jpg")
    there = started(Listing(("photos",), apart=fails))
    found = iter(there)
    assert next(found).sources.keys == ["photos/a.jpg"]
    with pytest.raises(PipelineError, match=words) as caught:
        next(found)
    assert type(caught.value) is kind
    there.close()


def test_a_lister_that_is_killed_is_one_sentence(many: Path) -> None:
    there = started(Listing((f"@{many}",)))
    found = iter(there)
    next(found)
    assert there.pid is not None
    os.kill(there.pid, signal.SIGKILL)
    with pytest.raises(StageFailure, match=r"^stage list: worker 0 .* was killed by SIGKILL.*; give the same command"):
        list(found)
    there.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `{0..4}.tar`, each with more members than are listed ahead of what is asked for."""
    folder = tmp_path_factory.mktemp("shards")
    write_tar(f"{folder}/0.tar", {f"{n:05}.jpg": b"" for n in range(IN_A_SHARD)})
    for number in range(1, 5):
        os.symlink("0.tar", folder / f"{number}.tar")
    return folder


@pytest.mark.parametrize(("named", "beside", "expected"), [(1, 3, 1), (2, 3, 2), (5, 3, 3), (5, 0, 0)])
def test_there_are_as_many_processes_as_shards_and_no_more_than_are_wanted(
    named: int, beside: int, expected: int, shards: Path
) -> None:
    there = started(Listing((f"{shards}/{{0..{named - 1}}}.tar",)), beside)
    found = iter(there)
    seen = len(next(found).sources)
    # What is left goes into no pipe: nobody has come to an end.
    wait_for(lambda: len(children(there)) == expected)
    pids = {child.pid for child in children(there)}
    while seen < named * IN_A_SHARD // 2:
        seen += len(next(found).sources)
        assert {child.pid for child in children(there)} == pids
    assert seen + sum(len(some.sources) for some in found) == named * IN_A_SHARD


def test_shards_are_listed_ahead_of_whoever_takes_the_first(shards: Path) -> None:
    """While nobody takes more, all of the others are read to their end."""
    there = started(Listing((f"{shards}/{{0..2}}.tar",)), beside=3)
    next(iter(there))
    wait_for(lambda: len(children(there)) == 3)
    wait_for(lambda: all(child.io_counters().read_chars > 512 * IN_A_SHARD for child in children(there)))
    wait_for(lambda: not any(file.path.endswith(".tar") for child in children(there) for file in child.open_files()))
    there.close()


def test_a_shard_that_is_cut_short_is_one_source_among_those_of_others(shards: Path, tmp_path: Path) -> None:
    for number in (0, 3):
        os.symlink(shards / "0.tar", tmp_path / f"{number}.tar")
    (tmp_path / "1.tar").write_bytes((shards / "0.tar").read_bytes()[: 512 * 2000])
    (tmp_path / "2.tar").write_bytes(b"no tar at all")
    listing = Listing((f"{tmp_path}/{{0..3}}.tar",))
    there = started(listing, beside=2)
    found = [source for some in there for source in some.sources]
    assert found == listed_here(listing)[0]
    failed = {at: source.key for at, source in enumerate(found) if isinstance(source.locator, FailedLocator)}
    assert failed == {IN_A_SHARD + 2000: f"{tmp_path}/1.tar", IN_A_SHARD + 2001: f"{tmp_path}/2.tar"}
    there.close()


def test_a_process_that_lists_shards_and_is_killed_is_one_sentence(shards: Path) -> None:
    there = started(Listing((f"{shards}/{{0..3}}.tar",)), beside=2)
    found = iter(there)
    taken = [next(found)]
    wait_for(lambda: len(children(there)) == 2)
    pids = [child.pid for child in children(there)]
    os.kill(pids[1], signal.SIGKILL)
    words = r"^stage list: worker 2 \(pid \d+\) was killed by SIGKILL.*; give the same command again"
    with pytest.raises(PipelineError, match=words):
        taken.extend(found)
    # Nothing before it is lost, and of nothing is there more than of what comes before.
    keys = [key for some in taken for key in some.sources.keys]
    assert len(keys) >= IN_A_SHARD
    assert keys == [f"{shards}/{at // IN_A_SHARD}.tar/{at % IN_A_SHARD:05}.jpg" for at in range(len(keys))]
    assert len(keys) < 2 * IN_A_SHARD
    wait_for(lambda: all_ended(pids))
    there.close()


@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_processes_that_list_shards_end_with_the_one_that_started_them(ends: str, shards: Path) -> None:
    """And with nothing else: what a terminal sends to all of them is the main process's to heed."""
    there = started(Listing((f"{shards}/{{0..1}}.tar",)), beside=2)
    found = iter(there)
    next(found)
    wait_for(lambda: len(children(there)) == 2)
    pids = [child.pid for child in children(there)]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    for _ in range(AHEAD // TOGETHER):
        next(found)
    assert not all_ended(pids)
    if ends == "killed":
        assert there.pid is not None
        os.kill(there.pid, signal.SIGKILL)
        wait_for(lambda: all_ended(pids))
    there.close()
    wait_for(lambda: all_ended(pids))


def test_cores_for_processes_that_list_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {1: 0, 2: 0, 7: 0, 8: 2, 16: 4, 26: 6, 128: 8}
    found = {}
    for number in cores:
        monkeypatch.setattr(shards_module, "usable_cores", lambda number=number: number)
        found[number] = shards_module.shard_listers()
    assert found == cores


def test_a_run_whose_lister_is_killed_goes_on(
    classify: Classify,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, many, real = tmp_path / "rows.csv", tmp_path / "many.txt", Session.classify_in_batches
    # More than goes into a pipe, and soon done.
    many.write_text("".join(f"{images}/{n}.jpg\n" for n in range(IMAGES)) + MANY * f"{tmp_path}/no-such-file.jpg\n")

    def killing(self: Session, sources: Iterator[Sources], **options: Any) -> Any:
        def killed() -> Iterator[Sources]:
            yield next(sources)
            (there,) = [c for c in multiprocessing.active_children() if c.name == "list-0"]
            there.kill()
            yield from sources

        return real(self, killed(), **options)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "classify_in_batches", killing)
        assert classify(f"@{many}", "--out", out) == 1
    said = capsys.readouterr().err
    assert "error: stage list: worker 0" in said
    assert "SIGKILL" in said
    assert "Traceback" not in said
    assert classify(f"@{many}", "--out", out) == 0
    assert "going on after 25 rows" in capsys.readouterr().out
    assert len({row["key"] for row in rows_in(out)}) == len(rows_in(out)) == IMAGES + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_takes_its_lister_along(number: signal.Signals, model_dir: Path, tmp_path: Path) -> None:
    """A signal from a terminal comes to all processes at once; SIGKILL to the main process alone."""
    # Minutes of work, so that it is not over before it is ended.
    (tmp_path / "names").write_text("".join(f"{name}.jpg\n" for name in range(1_000_000)))
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.classify", "@names", "--out", "rows.csv", *CPU, "--model", model_dir,
         "--loaders", "1", "--json"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        assert process.stdout is not None
        next(line for line in process.stdout if '"phase"' in line)
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        status = process.wait(PATIENCE_S)
        watchdog.cancel()
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: all_ended(pids))
    sweep_stale()


def test_what_only_this_process_can_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").touch()
    os.symlink("list.txt", "link")
    os.symlink("/dev/stdin", "stdin")
    os.symlink("loop", "loop")
    os.mkfifo("pipe")
    elsewhere = ("a.jpg", "@list.txt", "@link", "@https://a/list", "@missing", "@loop", f"@{tmp_path}/list.txt")
    assert all(Listing((argument,)).elsewhere for argument in elsewhere)
    assert Listing(elsewhere).elsewhere
    for argument in ("-", "@pipe", "@/dev/stdin", "@stdin", "@/proc/self/fd/0", "@/dev/fd/63"):
        assert not Listing(("a.jpg", argument)).elsewhere


def test_sources_are_counted_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_module, "PATIENCE_S", 0.0)
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    listing = Listing(of_every_kind(tmp_path), part=(1, 3))
    counter = Counter(listing, said.append)
    counter.start()
    wait_for(lambda: counter.counted is not None or said)
    assert counter.counted is not None
    in_shards = [source for source in listed_here(listing)[0] if ".tar" in source.key]
    assert counter.counted.sources == len(listed_here(listing)[0]) - len(in_shards)
    assert not said
    counter.stop()


def test_shards_are_not_listed_to_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.samples.expand.shard_sources", pytest.fail)
    monkeypatch.setattr("pipeline.classify.listing.shard_sources", pytest.fail)
    write_tar("a.tar", {"1.jpg": b"1"})
    os.symlink("a.tar", "b.tar")
    Path("missing.txt").write_text("a.jpg\nmissing.tar\n")
    size = Path("a.tar").stat().st_size
    [counted] = CountingWorker(Listing(("a.tar", "b.tar", "@missing.txt"))).give()
    assert counted == Counted(1, 2 * size)


def test_a_count_that_is_lost_is_said(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_module, "PATIENCE_S", 0.0)
    said: list[str] = []
    counter = Counter(Listing((f"@{many}.not",)), said.append)
    counter.start()
    wait_for(lambda: said)
    assert said == [
        f"how many sources there are is not known: {many}.not: the list cannot be read: there is no such file"
    ]
    assert counter.counted is None


def test_what_is_listed_soon_is_not_counted_besides(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_module, "PATIENCE_S", PATIENCE_S)
    with Intake(Listing((f"@{many}",)), done=KeySet()) as intake:
        intake.count(pytest.fail)
        assert intake.total is None
        assert sum(map(len, intake.sources())) == MANY
        assert intake.total == Total(MANY)


def test_a_total_of_shards_is_reckoned_by_those_that_have_been_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(counter_module, "PATIENCE_S", 0.0)
    each = 2 * TOGETHER
    write_tar("0.tar", {f"{number:05}.jpg": b"" for number in range(each)})
    for number in range(1, 40):
        os.symlink("0.tar", f"{number}.tar")
    Path("more.txt").write_text("".join(f"{number}.jpg\n" for number in range(100)))
    with Intake(Listing(("{0..39}.tar", "@more.txt")), done=KeySet()) as intake:
        intake.count(pytest.fail)
        sources, seen = intake.sources(), 0
        wait_for(lambda: intake._counter is not None and intake._counter.counted is not None)
        assert intake.total is None
        while seen < 3 * each:
            seen += len(next(sources))
            assert intake.total is not None
            assert intake.total.estimated
            # The end of a tar has no source in it.
            assert intake.total.sources == pytest.approx(40 * each + 100, rel=0.01)
        seen += sum(map(len, sources))
        assert intake.total == Total(seen) == Total(40 * each + 100)


def test_a_total_may_be_asked_for_while_a_shard_is_added() -> None:
    totals: list[Total | None] = []

    class Asked(Density):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if asking:
                totals.append(Counted(0, 4096).total(self))

    asking = False
    density, asking = Asked(), True
    density.add(Sources(["a.tar/1.jpg"], Ranges("a.tar", np.array([[512, 512]]))))
    assert Counted(0, 4096).total(density) == Total(4, estimated=True)
    assert set(totals) <= {None, Total(4, estimated=True)}


def test_a_count_that_is_not_waited_for(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_module, "PATIENCE_S", 0.0)
    for _ in range(3):
        with Intake(Listing((f"@{many}",)), done=KeySet()) as intake:
            intake.count(pytest.fail)
