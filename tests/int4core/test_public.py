"""What a program that imports int4core can rely on: the listed names, the version, the types."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import int4core
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_public_name_is_listed_as_kept() -> None:
    kept, _, experimental = PAGE.partition("## Experimental")
    assert all(f"`int4core.{name}`" in kept for name in int4core.__all__)
    assert all(hasattr(int4core, name) for name in int4core.__all__)
    assert not any(f"`int4core.{name}`" in experimental for name in int4core.__all__)


def test_the_version_is_the_package_s() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", int4core.__version__)
    assert version("int4-resnet50") == int4core.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(int4core.__file__).parent / "py.typed").is_file()
