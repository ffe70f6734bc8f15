"""Which NVRTC is taken where there are several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.source import KernelSource
from int4core.errors import EngineError


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where wheels put their libraries; there is no toolkit."""
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(nvrtc, "find_spec", lambda _name: spec)
    monkeypatch.setattr(nvrtc, "_TOOLKITS", (str(tmp_path / "toolkit"),))
    return tmp_path


def put(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (("libnvrtc.so.9.2", "libnvrtc.so.13"), "libnvrtc.so.13"),
        (("libnvrtc.so.12.9.86", "libnvrtc.so.12.10.1", "libnvrtc.so.12"), "libnvrtc.so.12.10.1"),
        (("libnvrtc.so.12", "libnvrtc.so.13.alt", "libnvrtc.so.old"), "libnvrtc.so.12"),
    ],
)
@pytest.mark.parametrize("place", ["nvidia/cuda_nvrtc/lib", "toolkit"])
def test_the_newest_of_a_folder(wheels: Path, place: str, names: tuple[str, ...], newest: str) -> None:
    put(wheels / place, *names)
    assert nvrtc.find_nvrtc() == wheels / place / newest


def test_the_newest_of_several_wheels_whatever_their_folders_are_called(wheels: Path) -> None:
    put(wheels / "nvidia" / "cuda_nvrtc" / "lib", "libnvrtc.so.12")
    put(wheels / "nvidia" / "cu13" / "lib", "libnvrtc.so.13")
    assert nvrtc.find_nvrtc() == wheels / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13"


def test_a_link_is_as_new_as_what_it_points_to(wheels: Path) -> None:
    put(wheels / "toolkit", "libnvrtc.so.12.2.140")
    put(wheels / "toolkit" / "newer", "libnvrtc.so.12.8.93")
    (wheels / "toolkit" / "libnvrtc.so.12").symlink_to("newer/libnvrtc.so.12.8.93")
    assert nvrtc.find_nvrtc() == wheels / "toolkit" / "libnvrtc.so.12"


def test_none_is_none(wheels: Path) -> None:
    assert nvrtc.find_nvrtc() is None
    put(wheels / "toolkit", "libnvrtc.so.alt")
    assert nvrtc.find_nvrtc() is None


@pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")
def test_a_chip_that_nvrtc_does_not_know_gets_portable_ptx() -> None:
    library = nvrtc.require_nvrtc()
    assert {75, 80, 89, 90} <= nvrtc.known_targets(library)
    assert nvrtc.target(library, "sm_90a") == "sm_90a"
    assert nvrtc.target(library, "sm_999") == "compute_80"
    with pytest.raises(EngineError, match="does not compile for sm_52 any more"):
        nvrtc.target(library, "sm_52")
    ptx = nvrtc.compile_source(library, KernelSource.of("top1.cu", "top1", {"WARPS": 4}), nvrtc.PORTABLE).cubin
    assert b".target sm_80" in ptx
    assert b"griddepcontrol" not in ptx


@pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")
def test_a_program_that_does_not_compile_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    library = nvrtc.require_nvrtc()
    real, destroyed = nvrtc._load(library), []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def nvrtcDestroyProgram(self, program: Any) -> None:  # noqa: N802
            destroyed.append(real.nvrtcDestroyProgram(program))

    monkeypatch.setattr(nvrtc, "_load", lambda _library: Watched())
    monkeypatch.setattr(KernelSource, "text", property(lambda self: "this is no kernel"))
    with pytest.raises(EngineError, match="does not compile"):
        nvrtc.compile_source(library, KernelSource.of("top1.cu", "top1", {"WARPS": 4}), "sm_90a")
    assert destroyed == [0]
