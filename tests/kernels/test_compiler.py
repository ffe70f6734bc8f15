"""The cache of binaries: keys, atomic files, several processes, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from int4core.backends.cuda.families.head import MEAN_SHAPE
from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.cache import CACHE_DIR, KernelCache, cache_folder, why_not_trusted
from int4core.backends.cuda.jit.compiler import REQUIRE_CACHED, cache_key, compile_all
from int4core.backends.cuda.jit.source import KernelSource
from int4core.errors import EngineError
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")

MEAN = KernelSource.of("mean.cu", "mean", {"SIZE": 7, "WARPS": 4, "ROWS_AT_ONCE": 1}, {"MeanShape": MEAN_SHAPE})
TOP1 = KernelSource.of("top1.cu", "top1", {"WARPS": 4})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.delenv(REQUIRE_CACHED, raising=False)
    return tmp_path / "cache"


def test_cold_then_warm(folder: Path) -> None:
    cold = compile_all([MEAN, TOP1], "sm_80")
    assert cold.missed == 2
    assert "cold start" in str(cold)
    assert sorted(folder.glob("*.cubin")) == sorted(cold.files.values())
    assert all(file.read_bytes().startswith(b"\x7fELF") for file in cold.files.values())
    warm = compile_all([MEAN, TOP1], "sm_80")
    assert warm.missed == 0
    assert "warm start" in str(warm)
    assert warm.files == cold.files


def test_the_key_changes_with_everything_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    other = KernelSource.of("mean.cu", "mean", {"SIZE": 7, "WARPS": 8, "ROWS_AT_ONCE": 1}, {"MeanShape": MEAN_SHAPE})
    keys = [cache_key(MEAN, "sm_80", "13.0"), cache_key(MEAN, "sm_90a", "13.0"), cache_key(MEAN, "sm_80", "13.1")]
    keys += [cache_key(other, "sm_80", "13.0"), cache_key(TOP1, "sm_80", "13.0")]
    monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "-lineinfo"))
    keys.append(cache_key(MEAN, "sm_80", "13.0"))
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_what_is_included(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(MEAN, "sm_80", "13.0")
    text = MEAN.text
    assert "wait_for_previous" in text  # of ptx/dependency.cuh
    monkeypatch.setattr(KernelSource, "text", property(lambda self: text.replace("wait_for_previous", "wait_for_it")))
    assert cache_key(MEAN, "sm_80", "13.0") != before


def test_a_required_cache_refuses_to_compile(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    compile_all([MEAN], "sm_80")
    monkeypatch.setenv(REQUIRE_CACHED, "1")
    assert compile_all([MEAN], "sm_80").missed == 0
    with pytest.raises(EngineError, match=f"1 of 2 kernels for sm_80 are not in {folder}"):
        compile_all([MEAN, TOP1], "sm_80")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "file" / "cache"))
    with pytest.raises(EngineError, match=r"cannot be written: .*INT4CORE_CACHE_DIR"):
        compile_all([MEAN], "sm_80")


def test_without_the_variable_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_DIR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "int4core"


def test_a_source_that_does_not_compile_says_so_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(KernelSource, "text", property(lambda self: "this is no kernel"))
    with pytest.raises(EngineError, match=r"mean\(.*does not compile for sm_80"):
        compile_all([MEAN], "sm_80")
    assert not list(folder.glob("*.cubin"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    """One that takes nothing from anybody."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_the_folder_and_its_files_are_their_user_s_alone(folder: Path) -> None:
    (file,) = compile_all([TOP1], "sm_80").files.values()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_can_write_is_refused(folder: Path, what: str, mode: int) -> None:
    (file,) = compile_all([TOP1], "sm_80").files.values()
    path = folder if what == "folder" else file
    path.chmod(mode)
    with pytest.raises(EngineError, match=rf"^{path}: can be written by other users \(mode {mode:o}\): .*{CACHE_DIR}"):
        compile_all([TOP1], "sm_80")


def test_what_is_another_user_s_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = compile_all([TOP1], "sm_80").files.values()
    user, path_of_another = os.geteuid(), file
    real = os.stat

    def stat_of(path: Path, **options: Any) -> Any:
        info = real(path, **options)
        if Path(path) != path_of_another:
            return info
        return os.stat_result((*info[:4], user + 1, *info[5:]))

    monkeypatch.setattr(os, "stat", stat_of)
    for path_of_another in (file, folder):
        with pytest.raises(EngineError, match=f"^{path_of_another}: belongs to user {user + 1}.*{CACHE_DIR}"):
            compile_all([TOP1], "sm_80")
    assert why_not_trusted(file) == ""


def test_nothing_is_put_into_a_folder_of_another(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(EngineError, match="can be written by other users"):
        KernelCache(folder).keep("0" * 32, b"binary")
    assert list(folder.iterdir()) == []


def test_a_planted_binary_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_all([MEAN, TOP1], "sm_80")
    file = compiled.files[TOP1]
    good = file.read_bytes()
    for planted in (b"\x7fELF of somebody else", good[:-1], good + b"\0", b""):
        file.write_bytes(planted)
        again = compile_all([MEAN, TOP1], "sm_80")
        assert (again.missed, again.damaged) == (1, 1)
        assert "1 compiled now (1 damaged in the cache)" in str(again)
        assert again.files[TOP1].read_bytes() == good
        assert len(list(folder.glob("*.cubin"))) == 2
    file.write_bytes(b"planted")
    monkeypatch.setenv(REQUIRE_CACHED, "1")
    with pytest.raises(EngineError, match="1 of 2 kernels for sm_80 are not in"):
        compile_all([MEAN, TOP1], "sm_80")


def test_a_binary_under_the_bare_key_is_not_loaded(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    key = cache_key(TOP1, "sm_80", nvrtc.version(nvrtc.require_nvrtc()))
    (folder / f"{key}.cubin").write_bytes(b"planted")
    compiled = compile_all([TOP1], "sm_80")
    assert compiled.missed == 1
    assert compiled.files[TOP1].read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_a_binary_that_is_no_file_is_an_error(folder: Path, what: str) -> None:
    (file,) = compile_all([TOP1], "sm_80").files.values()
    file.unlink()
    os.mkfifo(file, 0o600) if what == "pipe" else file.mkdir(0o700)
    with pytest.raises(EngineError, match=f"cannot be read: is not a regular file; name a folder with {CACHE_DIR}"):
        compile_all([TOP1], "sm_80")


def test_a_folder_without_locks_is_a_cache_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes may then compile the same: each file is whole, whoever wrote it."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert compile_all([TOP1], "sm_80").missed == 1
    assert compile_all([TOP1], "sm_80").missed == 0


def test_processes_share_the_folder_and_the_work(folder: Path) -> None:
    program = (
        "from int4core.backends.cuda.jit.compiler import compile_all\n"
        "from int4core.backends.cuda.jit.source import KernelSource\n"
        "sources = [KernelSource.of('top1.cu', 'top1', {'WARPS': i}) for i in (1, 2, 4)]\n"
        "done = compile_all(sources, 'sm_80')\n"
        "assert all(file.read_bytes().startswith(b'\\x7fELF') for file in done.files.values())\n"
        "print(done.missed)\n"
    )
    environment = {**os.environ, CACHE_DIR: str(folder)}
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    compiled = [int(process.communicate(timeout=300)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(compiled) == 3  # each kernel by one of them
    assert sorted(file.suffix for file in folder.iterdir()) == ["", *[".cubin"] * 3]
