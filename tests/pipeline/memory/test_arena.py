from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.memory import segment as segment_module
from pipeline.memory.arena import SLOT_ALIGNMENT, Arena, ArenaSpec, segment_folder, sweep_stale
from pipeline.memory.segment import remove_own
from tests.paths import ROOT

SHAPE = (3, 224, 224)


def test_a_slot_is_page_aligned_and_holds_a_sample() -> None:
    spec = ArenaSpec("x", 5, SHAPE)
    assert spec.sample_bytes == 150_528
    assert spec.slot_bytes % SLOT_ALIGNMENT == 0
    assert 0 <= spec.slot_bytes - spec.sample_bytes < SLOT_ALIGNMENT
    assert spec.total_bytes == 5 * (spec.slot_bytes + 4)


def test_what_one_mapping_writes_the_other_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Arena.create(4, (3, 32, 32), tmp_path) as ours, Arena.attach(ours.spec) as theirs:
        samples = rng.integers(-128, 128, (4, 3, 32, 32), dtype=np.int8)
        for slot in range(4):
            ours.sample(slot)[:] = samples[slot]
        got = theirs.gather(np.array([2, 0, 3, 2], dtype=np.int32))
        np.testing.assert_array_equal(got, samples[[2, 0, 3, 2]])


def test_the_segment_is_reserved_named_after_the_process_and_removed(tmp_path: Path) -> None:
    with Arena.create(3, SHAPE, tmp_path) as arena:
        path = Path(arena.spec.path)
        assert f"-{os.getpid()}-" in path.name
        status = path.stat()
        assert status.st_size == arena.spec.total_bytes
        assert status.st_blocks * 512 >= arena.spec.total_bytes
    assert not path.exists()
    arena.close()


def test_segments_are_where_the_user_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INT4CORE_SHM_DIR", str(tmp_path))
    with Arena.create(1, SHAPE) as arena:
        assert list(tmp_path.iterdir()) == [Path(arena.spec.path)]
    monkeypatch.setenv("INT4CORE_SHM_DIR", str(tmp_path / "none"))
    with pytest.raises(PipelineError, match="none is no folder"):
        Arena.create(1, SHAPE)
    monkeypatch.delenv("INT4CORE_SHM_DIR")
    assert segment_folder() in (Path("/dev/shm"), Path(tempfile.gettempdir()))


def faults_to_fill(arena: Arena, slot: int) -> int:
    sample = arena.sample(slot)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sample.fill(3)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_slot_that_is_mapped_is_filled_without_a_fault_for_each_page() -> None:
    with Arena.create(6, SHAPE) as ours, Arena.attach(ours.spec) as theirs:
        ours.memory.fill(0)
        if not theirs._segment.map_pages(0, 1):
            pytest.skip("this system maps no pages ahead: Linux does from 5.14 on")
        assert faults_to_fill(theirs, 5) > 30
        theirs.map_slot(2)
        assert faults_to_fill(theirs, 2) < 10
        theirs.map_slot(2)
        np.testing.assert_array_equal(ours.sample(2), np.full(SHAPE, 3, np.int8))
        assert not ours.sample(1).any()
        assert not ours.sample(3).any()


def test_a_slot_is_filled_where_the_system_maps_nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "_MADV_POPULATE_READ", 9999)
    with Arena.create(2, SHAPE) as arena:
        assert not arena._segment.map_pages(0, 1)
        arena.map_slot(1)
        arena.sample(1)[:] = 5
        np.testing.assert_array_equal(arena.gather(np.array([1], np.int32))[0], np.full(SHAPE, 5, np.int8))


def test_only_the_owner_removes_the_segment(tmp_path: Path) -> None:
    with Arena.create(1, SHAPE, tmp_path) as ours:
        Arena.attach(ours.spec).close()
        assert Path(ours.spec.path).exists()


def test_attaching_to_a_segment_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="gone"):
        Arena.attach(ArenaSpec(str(tmp_path / "none"), 1, SHAPE))


def test_an_arena_larger_than_the_folder_is_refused_before_anything_is_written() -> None:
    before = set(segment_folder().iterdir())
    with pytest.raises(PipelineError, match="hold fewer samples at a time"):
        Arena.create(10**9, SHAPE)
    assert set(segment_folder().iterdir()) <= before


def test_a_reservation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment_module.os, "posix_fallocate", full)
    with pytest.raises(PipelineError, match="No space left"):
        Arena.create(1, SHAPE, tmp_path)
    assert not list(tmp_path.iterdir())


def dead_segment(folder: Path) -> Path:
    """A segment whose owner left without closing, as a killed run does."""
    code = (
        "import os, sys; from pathlib import Path; from pipeline.memory.arena import Arena\n"
        f"a = Arena.create(1, (3, 8, 8), Path({str(folder)!r}))\n"
        "print(a.spec.path, flush=True); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return Path(done.stdout.strip())


def test_sweep_removes_the_dead_and_spares_the_living(tmp_path: Path) -> None:
    dead = dead_segment(tmp_path)
    assert dead.exists()
    other = tmp_path / "int4-resnet50-notes.txt"
    other.touch()
    with Arena.create(1, (3, 8, 8), tmp_path) as alive:
        # In another PID namespace, the owner's number is nobody's, or another's.
        elsewhere = tmp_path / f"int4-resnet50-{2**22 - 1}-abcd"
        Path(alive.spec.path).rename(elsewhere)
        assert sweep_stale(tmp_path) == [dead]
        assert elsewhere.exists()
        elsewhere.rename(alive.spec.path)
    assert other.exists()
    assert not list(tmp_path.glob("int4-resnet50-*-*"))


def test_sweep_passes_over_what_others_have_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link, fifo = (tmp_path / f"int4-resnet50-1-{kind}" for kind in ("aa", "bb", "cc"))
    folder.mkdir()
    target = tmp_path / "precious"
    target.touch()
    link.symlink_to(target)
    os.mkfifo(fifo)
    others = dead_segment(tmp_path)
    monkeypatch.setattr(segment_module.os, "geteuid", lambda: os.getuid() + 1)
    assert sweep_stale(tmp_path) == []
    assert all(os.path.lexists(path) for path in (folder, link, fifo, target, others))
    monkeypatch.undo()
    assert sweep_stale(tmp_path) == [others]
    assert sweep_stale(tmp_path / "none") == []


def test_nobody_else_can_read_a_segment(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with Arena.create(1, (3, 8, 8), tmp_path) as arena:
            assert stat.S_IMODE(os.stat(arena.spec.path).st_mode) == 0o600
    finally:
        os.umask(mask)


def test_a_segment_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, swept = fcntl.flock, []

    def after_a_sweep(fd: int, how: int) -> None:
        if not swept:
            (path,) = tmp_path.iterdir()
            path.unlink()
            swept.append(path)
        real(fd, how)

    monkeypatch.setattr(segment_module.fcntl, "flock", after_a_sweep)
    with Arena.create(1, (3, 8, 8), tmp_path) as arena:
        assert list(tmp_path.iterdir()) == [Path(arena.spec.path)] != swept
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(30, "Read-only file system")

    with pytest.raises(PipelineError, match="No such file"):
        Arena.create(1, SHAPE, tmp_path / "none")
    monkeypatch.setattr(segment_module.os, "open", refuse)
    with pytest.raises(PipelineError, match="no shared memory can be made here: Read-only file system"):
        Arena.create(1, SHAPE, tmp_path)
    with pytest.raises(PipelineError, match="cannot be opened: Read-only"):
        Arena.attach(ArenaSpec(str(tmp_path / "x"), 1, SHAPE))


def test_memory_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(segment_module.mmap, "mmap", refuse)
    with pytest.raises(PipelineError, match="cannot be mapped: Cannot allocate memory; see ulimit -v"):
        Arena.create(1, SHAPE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_process_in_a_hurry_removes_its_own(tmp_path: Path) -> None:
    dead = dead_segment(tmp_path)
    with Arena.create(1, (3, 8, 8), tmp_path) as arena:
        remove_own(tmp_path)
        assert not Path(arena.spec.path).exists()
    assert dead.exists()


def _child(spec: ArenaSpec) -> None:
    with Arena.attach(spec) as arena:
        arena.sample(1)[:] = 7


def test_a_spawned_process_writes_into_the_arena(tmp_path: Path) -> None:
    with Arena.create(2, (3, 8, 8), tmp_path) as arena:
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(arena.spec,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert (arena.sample(1) == 7).all()
        assert (arena.sample(0) == 0).all()
