"""The cache of binaries: keys, atomic files, several processes, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from int4core.backends.cuda import nvrtc
from int4core.backends.cuda.compiler import CACHE_DIR, REQUIRE_CACHED, cache_folder, cache_key, compile_all
from int4core.backends.cuda.source import KernelSource
from int4core.errors import EngineError
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")

MEAN = KernelSource.of("mean_u7.cu", "mean_u7", {"SIZE": 7, "THREADS": 128})
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
    assert sorted(folder.iterdir()) == sorted(cold.files.values())
    assert all(file.read_bytes().startswith(b"\x7fELF") for file in cold.files.values())
    warm = compile_all([MEAN, TOP1], "sm_80")
    assert warm.missed == 0
    assert "warm start" in str(warm)
    assert warm.files == cold.files


def test_the_key_changes_with_everything_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    other = KernelSource.of("mean_u7.cu", "mean_u7", {"SIZE": 7, "THREADS": 256})
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
    with pytest.raises(EngineError, match=r"mean_u7\(.*does not compile for sm_80"):
        compile_all([MEAN], "sm_80")
    assert not folder.exists() or list(folder.iterdir()) == []


def test_processes_share_the_folder(folder: Path) -> None:
    program = (
        "from int4core.backends.cuda.compiler import compile_all\n"
        "from int4core.backends.cuda.source import KernelSource\n"
        "sources = [KernelSource.of('mean_u7.cu', 'mean_u7', {'SIZE': 7, 'THREADS': 32 * i}) for i in (1, 2, 3)]\n"
        "for file in compile_all(sources, 'sm_80').files.values():\n"
        "    assert file.read_bytes().startswith(b'\\x7fELF')\n"
    )
    environment = {**os.environ, CACHE_DIR: str(folder)}
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert len(list(folder.iterdir())) == 3
    assert all(file.suffix == ".cubin" for file in folder.iterdir())


