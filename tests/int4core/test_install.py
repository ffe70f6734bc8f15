"""The remedy for a missing optional part names what is at hand, never a package that no index has."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from int4core import install
from int4core.install import install_argument, install_command
from tests.paths import ROOT


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path, noted: str | None) -> None:
    """As if this package lay in `folder`, and pip had noted that down."""
    monkeypatch.setattr(install, "__file__", str(folder / "site-packages" / "int4core" / "install.py"))
    distribution = SimpleNamespace(read_text=lambda name: noted)
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)


def test_a_checkout_is_named_by_its_path() -> None:
    assert install_argument("cuda13") == f"-e '{ROOT}[cuda13]'"
    assert install_command("train") == f"{sys.executable} -m pip install -e '{ROOT}[train]'"


def test_a_wheel_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "a b" / "int4_resnet50-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    elsewhere(monkeypatch, tmp_path, f'{{"url": "{wheel.as_uri()}", "archive_info": {{}}}}')
    assert install_argument("cuda12") == f"'{wheel}[cuda12]'"


@pytest.mark.parametrize(
    "noted", [None, "", "{", "[]", '{"url": "https://example.org/x.whl"}', '{"url": "file:///none"}']
)
def test_without_either_the_extra_s_own_requirements_are_named(
    noted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, tmp_path, noted)
    requires = ["numpy>=1.26", 'cupy-cuda13x[ctk]>=14; extra == "cuda13"', "matplotlib>=3.8; extra == 'report'"]
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    assert install_argument("cuda13") == "'cupy-cuda13x[ctk]>=14'"
    assert install_argument("report") == "'matplotlib>=3.8'"


def test_no_message_names_an_extra_of_the_package_as_an_index_would() -> None:
    """It is on none, and whoever registered the name there would be installed."""
    folders = ("int4core", "pipeline", "tools", "benchmarks", "docs")
    files = [ROOT / "README.md", ROOT / "Makefile", *(f for name in folders for f in (ROOT / name).rglob("*.*"))]
    texts = {f: f.read_text(encoding="utf-8") for f in files if f.suffix in ("", ".py", ".md")}
    assert len(texts) > 100
    assert [str(f) for f, text in texts.items() if "int4-resnet50[" in text] == []
