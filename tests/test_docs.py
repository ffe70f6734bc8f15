"""The commands, modules and files that README and docs name are there, and take the options they are shown with."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PAGES = [
    *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "model/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
_COMMAND = re.compile(r"(?:python|torchrun [^`\n]*?) -m ((?:pipeline|int4core|tools|benchmarks)\.[\w.]+)([^`\n|]*)")
_NAME = re.compile(r"`((?:pipeline|int4core|tools|benchmarks)(?:\.\w+)+)`")
_FILE = re.compile(r"`((?:pipeline|int4core|tools|benchmarks|docs|tests|model|autoconfig)/[\w./]*)`")
_LINK = re.compile(r'(?:\]\(|src=")(?!https?:)([^)#"\s]*)(?:#([^)"\s]*))?[)"]')


def commands() -> Iterator[tuple[str, str]]:
    """(module, arguments) of every command line; what follows ` -- ` is a command line of its own."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for module, arguments in _COMMAND.findall(text):
            ours, _, theirs = arguments.partition(" #")[0].partition(" -- ")
            yield module, ours
            yield from _COMMAND.findall(theirs)


class Parsed(Exception):
    """A command line was understood; nothing of the command has run."""


@pytest.mark.parametrize(("module", "arguments"), sorted(set(commands())))
def test_a_command_takes_the_options_it_is_shown_with(
    module: str, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: object, **named: object) -> None:
        parse(self, *args, **named)  # type: ignore[call-overload]
        raise Parsed

    given = shlex.split(arguments)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr("sys.argv", [module, *given])
    try:
        main = importlib.import_module(module).main
    except AttributeError:
        main = importlib.import_module(f"{module}.__main__").main
    with pytest.raises((Parsed, SystemExit)) as ended:
        main()
    if ended.type is SystemExit:
        # A command that is named for what it does, with no argument, says what it lacks.
        said = capsys.readouterr().err
        assert not given, said
        assert "required" in said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_and_files_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in _NAME.findall(text):
        pkgutil.resolve_name(name)
    for inside in _FILE.findall(text):
        assert (ROOT / inside).exists(), inside


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for linked, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / linked if linked else page
        assert file.exists(), linked
        assert not anchor or anchor in anchors(file), f"{linked}#{anchor}"


def test_there_are_pages_and_commands() -> None:
    assert len(PAGES) >= 5
    assert len(set(commands())) > 20


def test_the_front_end_that_is_shown_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "classify.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "front_end.py").write_text(code)
    for name, image in zip("abc", sorted((ROOT / "pipeline" / "demo").glob("*.jpg")), strict=False):
        shutil.copy(image, tmp_path / f"{name}.jpg")
    done = subprocess.run(
        [sys.executable, "front_end.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, first, second, third = done.stdout.splitlines()
    for line, name in ((first, "a.jpg"), (second, "b.jpg")):
        assert re.fullmatch(rf"{name} \((\d+, ){{4}}\d+\) \((\d\.\d+(e-\d+)?, ){{4}}\S+\) None", line), line
    assert re.fullmatch(r"\((\d+, ){4}\d+\)", third), third
