from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from tests.paths import ROOT
from tools import nsys_profile, timeline
from tools.nsys_profile import main, nsys_command, report
from tools.nsys_read import Activity, Profile, by_copy, by_layer, kernels_busy, overlap, read, union
from tools.passes import Launch, name_layers, planned_pass

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib, of the extra `report`"
)

# The tables and columns of an export that are read, as Nsight Systems 2025 declares them.
SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
    shortName INTEGER NOT NULL, gridX INTEGER NOT NULL, registersPerThread INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL,
    copyKind INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL);
CREATE TABLE NVTX_EVENTS (
    start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, text TEXT, globalTid INTEGER, textId INTEGER);
"""

PID = 77 << 24
THREAD = PID | 5
STRINGS = {1: "conv_u4s8", 2: "stem", 3: "gather", 4: "infer", 5: "cudaLaunchKernel"}
ONE_PASS = (Launch("conv1", "stem"), Launch("layer1_0_conv1", "conv_u4s8"), Launch("layer1_0_conv2", "conv_u4s8"))


def write(file: Path) -> Path:
    """Two passes of three kernels on stream 7, a stray kernel, and copies on stream 8; times in us below."""
    kernels = [
        (100, 200, 7, 1, 2),
        (200, 250, 7, 2, 1),
        (250, 300, 7, 3, 1),
        (400, 520, 7, 4, 2),
        (520, 570, 7, 5, 1),
        (570, 640, 7, 6, 1),
        (700, 710, 7, 7, 1),
        (150, 160, 9, 8, 3),
    ]
    copies = [(0, 120, 8, 10, 3_000_000, 1), (280, 420, 8, 11, 3_500_000, 1), (640, 644, 8, 12, 4096, 2)]
    calls = [(90 + i, 91 + i, THREAD, i, 5) for i in range(1, 8)] + [(700, 701, THREAD, 99, 5)]
    ranges = [(80, 300, 59, "batch", THREAD, None), (92, 94, 59, None, THREAD, 4), (0, None, 34, "mark", THREAD, None)]
    with closing(sqlite3.connect(file)) as db:
        db.executescript(SCHEMA)
        db.executemany("INSERT INTO StringIds VALUES (?, ?)", STRINGS.items())
        for begin, end, stream, correlation, name in kernels:
            db.execute(
                "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 1, ?, ?, ?, ?, ?, 132, 168, NULL)",
                (begin * 1000, end * 1000, stream, correlation, PID, name, name),
            )
        for begin, end, stream, correlation, size, kind in copies:
            db.execute(
                "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, 0, 1, ?, ?, ?, ?, ?)",
                (begin * 1000, end * 1000, stream, correlation, PID, size, kind),
            )
        for begin, end, thread, correlation, name in calls:
            db.execute(
                "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, ?, 0)",
                (begin * 1000, end * 1000, thread, correlation, name),
            )
        for begin, stop, *rest in ranges:
            end_ns = None if stop is None else stop * 1000  # a mark has no end
            db.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?, ?)", (begin * 1000, end_ns, *rest))
        db.commit()
    return file


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write(tmp_path / "export.sqlite")


def test_whole_passes_are_named_by_layer(export: Path) -> None:
    lines = by_layer(read(export, ONE_PASS))
    assert [(line.layer, line.name, line.count, line.total_us) for line in lines] == [
        ("conv1", "stem", 2, 220.0),
        ("", "gather", 1, 10.0),
        ("layer1_0_conv1", "conv_u4s8", 2, 100.0),
        ("layer1_0_conv2", "conv_u4s8", 2, 120.0),
        ("batch", "conv_u4s8", 1, 10.0),
    ]
    assert lines[0].mean_us == 110.0
    assert lines[0].share == pytest.approx(220 / 460)
    assert sum(line.share for line in lines) == pytest.approx(1)


def test_without_a_plan_kernels_take_the_innermost_range_of_their_launch(export: Path) -> None:
    counts = {(line.layer, line.name): line.count for line in by_layer(read(export))}
    # Launches at 92, 93 and 94 us are inside `infer`, which is inside `batch`.
    assert counts == {
        ("batch", "stem"): 1,
        ("infer", "conv_u4s8"): 2,
        ("infer", "stem"): 1,
        ("batch", "conv_u4s8"): 3,
        ("", "gather"): 1,
    }


def test_another_plan_names_nothing(export: Path) -> None:
    other = (*ONE_PASS, Launch("fc", "linear"))
    assert {line.layer for line in by_layer(read(export, other))} == {"batch", "infer", ""}


def test_copies_and_what_hides_them(export: Path) -> None:
    h2d = by_copy(read(export, ONE_PASS))[1]
    assert (h2d.kind, h2d.count, h2d.total_us, h2d.bytes) == ("H2D", 2, 260.0, 6_500_000)
    # 100..120 of the first, 280..300 and 400..420 of the second.
    assert h2d.hidden == pytest.approx(60 / 260)
    assert h2d.gbs == pytest.approx(25.0)
    d2h = by_copy(read(export, ONE_PASS))[0]
    assert (d2h.kind, d2h.hidden) == ("D2H", 0.0)


def test_a_gather_kernel_can_count_as_a_copy(export: Path) -> None:
    profile = read(export, ONE_PASS, copy_kernels="^gather$")
    assert by_copy(profile)[1].count == 3
    assert by_copy(profile)[1].hidden == pytest.approx((60 + 10) / 270)
    assert not any(line.name == "gather" for line in by_layer(profile))
    with pytest.raises(PipelineError, match="no regular expression"):
        read(export, copy_kernels="(")


def test_how_busy_the_device_was(export: Path) -> None:
    # Kernels cover 100..300, 400..640 and 700..710 of 0..710 us.
    assert kernels_busy(read(export)) == pytest.approx(450 / 710)


def test_a_copy_is_hidden_by_kernels_of_its_own_device_only() -> None:
    kernel = Activity(0, 100, PID, 0, 7, "kernel", "conv")
    same, other = (Activity(0, 100, PID, device, 8, "H2D", "H2D", bytes=1) for device in (0, 1))
    assert by_copy(Profile((kernel, same, other), ()))[0].hidden == pytest.approx(0.5)


def test_intervals() -> None:
    assert union([(5, 7), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 7)]
    assert overlap([(0, 10), (2, 6)], [(1, 3), (5, 8)]) == 5 + 2
    assert overlap([(0, 1)], []) == 0


def test_layers_are_named_in_whole_passes_only() -> None:
    functions = ["stem", "conv_u4s8", "stem", "conv_u4s8", "conv_u4s8", "stem"]
    assert name_layers(functions, ONE_PASS) == ["", "", "conv1", "layer1_0_conv1", "layer1_0_conv2", ""]
    assert name_layers(functions, ()) == [""] * 6
    # Where a pass could begin inside another one, they follow each other all the same.
    twice = (Launch("first", "conv"), Launch("second", "conv"))
    assert name_layers(["conv"] * 5, twice) == ["first", "second", "first", "second", ""]


def test_the_plan_of_the_default_model_is_a_pass() -> None:
    one_pass = planned_pass(nsys_profile.DEFAULT_MODEL, "h200", 1024)
    assert one_pass[0].layer == "conv1"
    assert len({launch.layer for launch in one_pass}) == len(one_pass) > 40  # 52 layers, some of them two at a time
    assert name_layers([launch.function for launch in one_pass], one_pass)[-1] == one_pass[-1].layer


def test_an_export_without_copies_or_ranges_is_read(export: Path) -> None:
    with closing(sqlite3.connect(export)) as db:
        for table in ("CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"):
            db.execute(f"DROP TABLE {table}")
        db.commit()
    profile = read(export, ONE_PASS)
    assert profile.copies == profile.ranges == ()
    assert list(report(profile))[-1] == "no copies"


def test_what_is_no_export_is_an_error(tmp_path: Path, export: Path) -> None:
    with pytest.raises(PipelineError, match="no such file"):
        read(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("not a database, and long enough to see it at once" * 20)
    with pytest.raises(PipelineError, match="not an export"):
        read(tmp_path / "text")
    sqlite3.connect(tmp_path / "empty").close()
    with pytest.raises(PipelineError, match="not an export"):
        read(tmp_path / "empty")
    with closing(sqlite3.connect(export)) as db:
        db.execute("DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL")
        db.execute("DELETE FROM CUPTI_ACTIVITY_KIND_MEMCPY")
        db.commit()
    with pytest.raises(PipelineError, match="no kernel and no copy"):
        read(export)


@pytest.mark.parametrize("batch", ["0", "-1", "9" * 400, "9" * 5000])
def test_a_batch_of_no_images_is_refused(batch: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--read", str(export), "--batch", batch])
    assert "is not a whole number from 1" in capsys.readouterr().err


def test_an_export_is_only_read(tmp_path: Path) -> None:
    export = write(tmp_path / "what? #1%20.sqlite")
    with closing(sqlite3.connect(export)) as db:
        db.execute("PRAGMA journal_mode = delete")
        # A trigger, a view or a function of the file could write; here, the very opening of a hot journal would.
        db.execute("CREATE TABLE scratch (value INTEGER)")
        db.commit()
    journal = export.with_name(export.name + "-journal")
    journal.write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(1016))
    before = export.read_bytes(), journal.read_bytes()
    with contextlib.suppress(PipelineError):
        read(export)
    assert (export.read_bytes(), journal.read_bytes()) == before
    journal.unlink()
    assert len(read(export, ONE_PASS).kernels) == 8


def test_an_export_that_takes_for_ever_is_an_error(export: Path) -> None:
    with closing(sqlite3.connect(export)) as db:
        db.execute("DROP TABLE NVTX_EVENTS")
        db.execute(
            "CREATE VIEW NVTX_EVENTS AS WITH RECURSIVE n(start) AS (SELECT 1 UNION ALL SELECT start + 1 FROM n) "
            "SELECT start, start AS end, 59 AS eventType, 'x' AS text, 1 AS globalTid, 0 AS textId FROM n"
        )
        db.commit()
    with pytest.raises(PipelineError, match=r"not read in 0\.2 s; capture a shorter time with --duration"):
        read(export, limit_s=0.2)


@pytest.mark.parametrize("value", ["'soon'", "NULL", "x'00ff'"])
def test_a_time_that_is_no_number_is_an_error(value: str, export: Path) -> None:
    with closing(sqlite3.connect(export)) as db:
        db.execute("DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY")
        columns = "1 AS start, 1 AS deviceId, 1 AS streamId, 1 AS globalPid, 1 AS bytes, 1 AS copyKind"
        db.execute(f"CREATE VIEW CUPTI_ACTIVITY_KIND_MEMCPY AS SELECT {columns}, {value} AS end")
        db.commit()
    with pytest.raises(PipelineError, match="not an export of Nsight Systems"):
        read(export)


def test_the_command_line_of_nsys() -> None:
    line = nsys_command(Path("nsys"), Path("out"), ["python", "-m", "x"], delay_s=20, duration_s=2.5)
    assert line[:2] == ["nsys", "profile"]
    assert line[-3:] == ["python", "-m", "x"]
    for flag in ("--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--export=sqlite", "--output=out"):
        assert flag in line
    assert {"--trace-fork-before-exec=true", "--delay=20", "--duration=2.5", "--kill=none"} <= set(line)
    assert "--capture-range=cudaProfilerApi" in nsys_command(Path("nsys"), Path("out"), [], capture_api=True)
    assert "--kill=none" not in nsys_command(Path("nsys"), Path("out"), [])


def fake_nsys(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    nsys = folder / "nsys"
    nsys.write_text(f"#!{sys.executable}\n{script}")
    nsys.chmod(nsys.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_from_the_command_to_the_tables(
    tmp_path: Path, export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nsys(
        tmp_path,
        monkeypatch,
        "import shutil, sys\n"
        "(out,) = [word.split('=')[1] for word in sys.argv if word.startswith('--output=')]\n"
        "assert sys.argv[-2:] == ['program', '--flag'], sys.argv\n"
        f"shutil.copy({str(export)!r}, out + '.sqlite')\n",
    )
    monkeypatch.setattr(nsys_profile, "planned_pass", lambda model, gpu, batch: ONE_PASS)
    out = tmp_path / "run.v1"
    assert main(["--out", str(out), "--no-picture", "--", "program", "--flag"]) == 0
    said = capsys.readouterr().out
    assert "layer1_0_conv2           conv_u4s8                              2        120.0       60.0   26.1%" in said
    assert "kernels ran in 63.4% of 0.7 ms" in said
    assert "H2D                            2        260.0        6.5    25.0          23.1%" in said


def test_a_failing_nsys_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nsys(tmp_path, monkeypatch, "raise SystemExit(3)\n")
    assert main(["--out", str(tmp_path / "run"), "--", "program"]) == 1
    assert "nsys ended with 3" in capsys.readouterr().err


def test_a_chip_without_a_plan_names_no_layers(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--read", str(export), "--gpu", "nothing", "--no-picture"]) == 0
    assert "layers are not named: unknown GPU 'nothing'" in capsys.readouterr().out


@needs_matplotlib
def test_the_picture_is_a_png(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--read", str(export)]) == 0
    assert export.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "picture: " in capsys.readouterr().out


@needs_matplotlib
def test_a_picture_that_cannot_be_written_is_an_error(export: Path) -> None:
    with pytest.raises(PipelineError, match="the picture cannot be written"):
        timeline.draw(read(export), export / "below a file.png")


def test_without_matplotlib_the_error_names_the_extra(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--read", str(export)]) == 1
    assert f"pip install -e '{ROOT}[report]'" in capsys.readouterr().err


def test_the_picture_shows_the_middle(export: Path) -> None:
    profile = read(export)
    assert timeline.middle(profile, 0.1) == (305_000, 405_000)
    assert timeline.middle(profile, 40) == profile.span == (0, 710_000)
