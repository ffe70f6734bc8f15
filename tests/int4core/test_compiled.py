"""What Numba keeps on disk is a convenience: without it a function is compiled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

numba = pytest.importorskip("numba", reason="needs Numba: make test WITH_TORCH=1, or pip install '.[numba]'")

from int4core.compiled import compiled  # noqa: E402

NAME = "tests_of_compiled"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that Numba keeps functions in."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def loaded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A function as a new process has it: nothing of it is in memory."""
    file = tmp_path / "module.py"
    file.write_text("def twice(x):\n    return x + x\n")

    def load() -> Any:
        spec = importlib.util.spec_from_file_location(NAME, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, NAME, module)
        spec.loader.exec_module(module)
        return compiled(module.twice)

    return load


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.suffix in (".nbi", ".nbc"))


def test_it_is_compiled_once_and_then_read(loaded: Callable[[], Any], cache: Path) -> None:
    assert loaded()(21) == 42
    assert [path.suffix for path in kept(cache)] == [".nbc", ".nbi"]
    again = loaded()
    assert again(21) == 42
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk_is_no_error(loaded: Callable[[], Any], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import IndexDataCacheFile

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", full)
    monkeypatch.setattr(IndexDataCacheFile, "_save_index", full)
    assert loaded()(21) == 42
    assert kept(cache) == []


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("size", [0, 30])
def test_a_file_that_was_cut_short_is_replaced(suffix: str, size: int, loaded: Callable[[], Any], cache: Path) -> None:
    assert loaded()(21) == 42
    (hurt,) = (path for path in kept(cache) if path.suffix == suffix)
    hurt.write_bytes(hurt.read_bytes()[:size])
    assert loaded()(21) == 42
    again = loaded()
    assert again(21) == 42
    assert sum(again.stats.cache_hits.values()) == 1
