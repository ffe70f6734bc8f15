"""What a user installs: the wheel has everything the command needs, from whatever folder it is run."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.pipeline.application import CPU


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
    assert not [n for n in names if n.startswith(("tests/", "tools/", "benchmarks/"))]


def test_installing_it_brings_what_the_commands_need(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    distribution = next(iter(metadata.distributions(path=[str(tmp_path)])))
    required = {re.split("[ <>=!~;]", r)[0] for r in distribution.requires or [] if "extra ==" not in r}
    assert required == {"numpy", "pillow", "mlcommons-loadgen", "psutil", "rich", "nvidia-ml-py", "threadpoolctl"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of commands, each as an installer writes it; what they import is the wheel's, and not the checkout's."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    (folder / "bin").mkdir()
    distribution = next(iter(metadata.distributions(path=[str(folder / "site")])))
    for script in distribution.entry_points.select(group="console_scripts"):
        module, _, function = script.value.partition(":")
        (folder / "bin" / script.name).write_text(
            f"import sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
        )
    return folder


def run(
    installed: Path, command: str, *arguments: object, cwd: Path, first: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Dependencies are the environment's, but for what is in the folder `first`."""
    path = os.pathsep.join(str(p) for p in (first, installed / "site") if p is not None)
    return subprocess.run(
        [sys.executable, installed / "bin" / command, *map(str, arguments)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A user's folder in which everything is called as parts of this project are."""
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the wrong pipeline')\n")
    for name in ("tools", "model", "autoconfig", "int4core", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    return tmp_path


def test_the_commands_run_in_a_folder_of_the_same_names(installed: Path, crowded: Path) -> None:
    """With the model and the images that come with the package."""
    assert sorted(p.name for p in (installed / "bin").iterdir()) == ["int4-classify", "int4-doctor", "int4-offline"]
    offline = run(installed, "int4-offline", "--help", cwd=crowded)
    assert offline.returncode == 0, offline.stderr
    assert "--lgts_min_duration_ms" in offline.stdout
    doctor = run(installed, "int4-doctor", "--gpu", "cpu", cwd=crowded)
    assert "LoadGen" in doctor.stdout, doctor.stderr
    images = sorted((installed / "site" / "pipeline" / "demo").glob("*.jpg"))[:2]
    done = run(installed, "int4-classify", *images, *CPU, "--out", "rows.csv", cwd=crowded)
    assert done.returncode == 0, done.stderr
    assert f"model {installed / 'site' / 'model'}" in done.stdout
    rows = list(csv.DictReader((crowded / "rows.csv").open(newline="")))
    assert [row["key"] for row in rows] == [str(image) for image in images]
    names = (ROOT / "model" / "classes.txt").read_text().splitlines()
    assert all(row["class_name"] == names[int(row["class_id"])] for row in rows)


def test_a_missing_loadgen_is_offlines_alone(installed: Path, crowded: Path) -> None:
    """Neither the command nor its processes look for it."""
    (crowded / "none").mkdir()
    (crowded / "none" / "mlperf_loadgen.py").write_text("raise ImportError('not here')\n")
    image = next((installed / "site" / "pipeline" / "demo").glob("*.jpg"))
    done = run(installed, "int4-classify", image, *CPU, "--out", "-", cwd=crowded, first=crowded / "none")
    assert done.returncode == 0, done.stderr
    assert str(image) in done.stdout
    offline = run(installed, "int4-offline", *CPU, cwd=crowded, first=crowded / "none")
    assert offline.returncode
    assert "pip install mlcommons-loadgen" in offline.stderr
