"""What a user installs: the wheel has everything the command needs, from whatever folder it is run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Built from a copy: setuptools writes into the source tree.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, source], check=True, cwd=folder)
    return next(folder.glob("int4_resnet50-*.whl"))


def test_it_carries_the_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "autoconfig/README.md" in names
    assert "pipeline/demo/map.txt" in names
    for folder, pattern in (
        ("int4core/kernels", "*.cu*"), ("pipeline/jpeg/kernels", "*.cu*"), ("autoconfig", "*"),
        ("pipeline/demo", "*.jpg"), ("model", "*"), ("pipeline/report/templates", "*"),
    ):  # fmt: skip
        tracked = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob(pattern) if p.is_file()}
        assert {n for n in tracked if "__pycache__" not in n} <= names
    assert not [n for n in names if n.startswith("tests/")]


def test_the_command_runs_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    # The wheel's files come first, and the checkout not at all; the dependencies are the environment's.
    code = (
        f"import sys; sys.path[:] = [{str(site)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "import pipeline.offline, int4core\n"
        "print(int4core.__file__); sys.exit(pipeline.offline.main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "--lgts_min_duration_ms" in done.stdout
