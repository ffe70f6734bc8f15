"""Build MLPerf LoadGen with four more functions: queries and answers as NumPy arrays, for over a million samples/s.

    python -m tools.build_loadgen DIR

Downloads the sources of the installed version of mlcommons-loadgen, adds what tools/loadgen_arrays.h has to
its Python binding, and nothing else, and leaves the module in DIR: `pipeline.offline --loadgen-path DIR` takes it.
Wants a C++ compiler, and pip's access to the package index.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from int4core.atomic import write_atomically
from int4core.errors import printed
from int4core.streams import run_command
from pipeline.errors import PipelineError
from pipeline.loadgen.binding import MODULE

PACKAGE = "mlcommons-loadgen"
ARRAYS = Path(__file__).resolve().with_name("loadgen_arrays.h")
BINDING = Path("bindings") / "python_api.cc"
_HEAD = "PYBIND11_MODULE(mlperf_loadgen, m) {\n"
_INCLUDES = "".join(f"#include <{name}>\n" for name in ("chrono", "memory", "mutex", "vector", "pybind11/numpy.h"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.build_loadgen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the module is left")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="the sources, downloaded before")
    args = parser.parse_args(argv)
    try:
        print(f"built {build(args.folder, args.sdist)}; use it with --loadgen-path {args.folder}")
    except PipelineError as error:
        print(f"build_loadgen: {printed(error)}", file=sys.stderr)
        return 1
    return 0


def build(folder: Path, sdist: Path | None = None) -> Path:
    """Build the module into `folder`; returns its path. Raises PipelineError."""
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        sources = _unpack(sdist or _download(work), work)
        patch(sources / BINDING)
        _pip("wheel", "--no-deps", "--wheel-dir", str(work / "wheels"), str(sources))
        wheel = next((work / "wheels").glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.startswith(MODULE) and name.endswith(".so"))
            try:
                # Never written into: a run that has an earlier build of it mapped would crash.
                write_atomically(folder / name, archive.read(name))
            except OSError as error:
                raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder / name


def patch(binding: Path) -> None:
    """Add the functions to the source of LoadGen's binding. Raises PipelineError where it is not as expected."""
    try:
        text = binding.read_text(encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"{binding}: cannot be read: {error.strerror}; is this LoadGen's sdist?") from error
    if text.count(_HEAD) != 1:
        raise PipelineError(f"{binding}: not the binding that is known; use the lists of this version")
    text = text.replace(_HEAD, f"{ARRAYS.read_text()}\n{_HEAD}  AddArrays(m);\n")
    binding.write_text(f"{_INCLUDES}{text}")


def _download(work: Path) -> Path:
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise PipelineError(f"{PACKAGE} is not installed: pip install {PACKAGE}") from error
    _pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(work), f"{PACKAGE}=={version}")
    return next(work.glob("*.tar.gz"))


def _unpack(sdist: Path, work: Path) -> Path:
    """The folder of the sources."""
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "sources", filter="data")
    except (OSError, tarfile.TarError) as error:
        raise PipelineError(f"{sdist}: cannot be unpacked: {error}") from error
    found = next((path.parent.parent for path in (work / "sources").rglob(BINDING.name)), None)
    if found is None:
        raise PipelineError(f"{sdist}: no {BINDING} in it: not LoadGen's sdist")
    return found


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line.strip() for line in said if "error:" in line.lower()]
        raise PipelineError(f"pip {arguments[0]} failed: " + "; ".join(errors[:5] or said[-3:]))


if __name__ == "__main__":
    sys.exit(run_command(main))
