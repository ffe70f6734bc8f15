from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from tools import build_loadgen
from tools.build_loadgen import ARRAYS, build, main, patch


def test_the_binding_gets_our_functions_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "python_api.cc"
    path.write_text("namespace py {\nPYBIND11_MODULE(mlperf_loadgen, m) {\n  m.doc();\n}\n}\n")
    patch(path)
    text = path.read_text()
    includes, rest = text.split("namespace py", 1)
    assert all(line.startswith("#include <") for line in includes.splitlines())
    assert "#include <pybind11/numpy.h>\n" in includes
    rest = f"namespace py{rest}".replace(f"{ARRAYS.read_text()}\n", "")
    assert rest == "namespace py {\nPYBIND11_MODULE(mlperf_loadgen, m) {\n  AddArrays(m);\n  m.doc();\n}\n}\n"


def test_another_binding_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "python_api.cc"
    path.write_text("NB_MODULE(mlperf_loadgen, m) {\n")
    with pytest.raises(PipelineError, match="not the binding that is known"):
        patch(path)
    assert path.read_text() == "NB_MODULE(mlperf_loadgen, m) {\n"


def test_a_run_keeps_the_build_that_it_has_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist, name = tmp_path / "x.tar.gz", "mlperf_loadgen.cpython-0.so"
    (tmp_path / "python_api.cc").write_text("PYBIND11_MODULE(mlperf_loadgen, m) {\n}\n")
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tmp_path / "python_api.cc", "mlperf/bindings/python_api.cc")

    def wheel(*arguments: str) -> None:
        folder = Path(arguments[arguments.index("--wheel-dir") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr(name, b"new")

    monkeypatch.setattr(build_loadgen, "_pip", wheel)
    file = tmp_path / "out" / name
    file.parent.mkdir()
    file.write_bytes(b"earlier")
    with file.open("rb") as loaded:
        assert build(file.parent, sdist) == file
        assert (loaded.read(), file.read_bytes()) == (b"earlier", b"new")


def test_no_sdist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_bytes(b"no archive")
    assert main([str(tmp_path / "out"), "--sdist", str(file)]) == 1
    assert f"{file}: cannot be unpacked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
