from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import TextIO, TypeAlias

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment

from pipeline.machine.hardware import GpuLoad, Load, Monitor, describe_machine
from pipeline.report import dashboard as dashboard_module
from pipeline.report.dashboard import Dashboard, choose_mode, json_line, plain_line
from pipeline.report.decoded import decoded_line
from pipeline.report.drawing import bar, chart, clock, duration, fit, percent, rate
from pipeline.report.frame import draw
from pipeline.report.history import COLUMNS, History
from pipeline.report.view import View
from pipeline.telemetry.latency import Latencies
from pipeline.telemetry.metrics import Decoded, Snapshot, StageSnapshot
from tests.pipeline.conftest import PATIENCE_S, wait_for
from tests.pipeline.report import scene

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"

# What a test's terminal is sent last.
LAST = "--- no more ---"

Terminal: TypeAlias = tuple[TextIO, bytearray, Callable[[], str]]


def stage(name: str, **values: float) -> StageSnapshot:
    given = {"workers": 1, "done": 0, "rate": 0.0, "busy": 0.0, "queued": 0, "capacity": 10} | values
    return StageSnapshot(name, **given)  # type: ignore[arg-type]


def snapshot(completed: int = 50, expected: int = 200, phase: str = "running") -> Snapshot:
    stages = (
        stage("decode", done=9, failed=2),
        stage("infer", done=completed, rate=80.5, busy=0.97, queued=7),
        stage("complete", done=completed, rate=80.5, busy=0.01),
    )
    return Snapshot(phase, 12.0, completed, expected, 80.5, 70.0, stages, completed, 0.0)


def view(shown: Snapshot | None = None, load: Load | None = None) -> View:
    shown = shown or snapshot()
    return View("a title", shown, shown.expected, 4.0, (10.0, 80.0), 80.0, load)


def text_of(shown: View, width: int = 100, height: int = 40) -> str:
    return "\n".join("".join(segment.text for segment in line) for line in draw(shown, width, height))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A real pseudo-terminal of 100 x 40, what it has got so far, and what it has got when nothing more comes."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    written = bytearray()

    def drain() -> None:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            written.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    stream = os.fdopen(slave, "w", encoding="utf-8")

    def everything() -> str:
        """What has been written; to be called once, when nothing more will be."""
        stream.write(LAST)
        stream.flush()
        wait_for(lambda: LAST.encode() in written)
        return written.decode("utf-8", errors="replace").partition(LAST)[0]

    try:
        yield stream, written, everything
    finally:
        stream.close()
        reader.join(PATIENCE_S)
        os.close(master)


def test_the_frame_says_what_matters() -> None:
    text = text_of(view(load=Load(8, 0.5, 2 << 30, 8 << 30)))
    for said in (
        "a title", "running 00:12", " 25.0 %", "50 / 200", "ETA 00:04", "80.5 img/s now", "70.0 mean",
        "80.0 peak", "▶ infer", "97 %", "7/10", "2 samples of decode could not be done", "8 cores", "50 %",
        "2.0 / 8.0 GiB",
    ):  # fmt: skip
        assert said in text, said
    assert text.count("▶") == 1


def test_the_frame_with_a_gpu() -> None:
    gpu = GpuLoad(1, "NVIDIA H200", 0.98, 12 << 30, 140 << 30, 512.4, 700.0, 1980, 61)
    text = text_of(view(load=Load(8, 0.5, 2 << 30, 8 << 30, (gpu,))))
    for said in ("GPU1", "98 %", "12.0 / 140.0 GiB", "512 / 700 W", "1,980 MHz", "61 °C", "H200"):
        assert said in text, said
    silent = GpuLoad(0, "NVIDIA H200 MIG", None, None, None, None, None, None, None)
    text = text_of(view(load=Load(8, 0.5, 2 << 30, 8 << 30, (silent,))))
    assert "n/a" in text
    assert "None" not in text


@pytest.mark.parametrize("width", [76, 80, 90, 100])
def test_every_line_of_the_frame_is_as_wide_as_the_frame(width: int) -> None:
    gpu = GpuLoad(11, "NVIDIA H200 " + "long name " * 9, 1.0, 139 << 30, 140 << 30, 699.0, 700.0, 1980, 100)
    load = Load(384, 1.0, 1999 << 30, 2048 << 30, (gpu,))
    big = Snapshot(
        "running", 36_000.0, 98_999_999, 99_000_000, 181_237.0, 181_237.0,
        (stage("decode", workers=128, done=50_000, busy=1.0, queued=65_536, capacity=65_536),
         stage("a long name for a stage", done=99_000_000, rate=181_237.0, busy=0.5)),
        99_000_000, 36_000.0,
    )  # fmt: skip
    unbounded = replace(big, stages=(stage("x", capacity=0, queued=3),))
    for shown in (
        view(), view(big, load), view(unbounded),
        view(snapshot(0, 0, "loading")), view(snapshot(200, 200, "done")),
        replace(view(), title="片" * 80), replace(view(), columns=(), eta_s=None, peak=0.0), scene.view("running"),
    ):  # fmt: skip
        for line in draw(shown, width, 40):
            assert cell_len("".join(s.text for s in line)) == width


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_title_that_is_cut_ends_in_an_ellipsis(width: int) -> None:
    long = replace(view(), title="model on CPU by NumPy: " + "no NVIDIA GPU was found " * 4)
    head, *_ = text_of(long, width).splitlines()
    assert re.search(r"model on CPU .*…─* running 00:12 ─", head)
    assert cell_len(head) == width


def test_100_percent_means_all() -> None:
    assert "100.0 %" not in text_of(view(snapshot(99_999, 100_000)))
    assert "100.0 %" in text_of(view(snapshot(100_000, 100_000, "done")))
    assert percent(999, 1000) == "99.9 %"
    assert percent(10**9 - 1, 10**9) == "99.9 %"


def test_bars_and_charts() -> None:
    def drawn(share: float) -> str:
        return "".join(s.text for s in bar(share, 4, draw(view(), 76, 40)[0][0].style))  # type: ignore[arg-type]

    assert [drawn(x) for x in (0.0, 0.5, 1.0, 2.0, -1.0)] == ["····", "██··", "████", "████", "····"]
    assert drawn(1 / 32) == "▏···"
    assert chart([0, 1, 2, 4], 6, 2) == ["   █  ", " ▄██  "]
    assert chart([5, 0], 1, 1) == [" "]
    assert chart([], 3, 2) == ["   ", "   "]
    assert (clock(0), clock(61.4), clock(3723)) == ("00:00", "01:01", "1:02:03")
    assert (rate(12.34), rate(12345.6)) == ("12.3", "12,346")


def test_durations_are_read_at_a_glance() -> None:
    said = [duration(ms) for ms in (0.0123, 1.284, 12.34, 999.4, 999.6, 7_330.0, 99_960.0, 999_600.0, 1_234_000.0)]
    assert said == ["0.0123 ms", "1.28 ms", "12.3 ms", "999 ms", "1 s", "7.33 s", "100 s", "1,000 s", "1,234 s"]


def test_fields_are_shown_whole_or_not_at_all() -> None:
    fields = [[Segment("first")], [Segment("and a "), Segment("second")], [Segment("3")]]
    shown = ["".join(s.text for s in fit(fields, width, gap=2)) for width in (4, 5, 18, 19, 21, 22)]
    assert shown == ["", "first", "first", "first  and a second", "first  and a second", "first  and a second  3"]


def test_latencies_are_whole_at_every_width() -> None:
    slow = replace(snapshot(), latency_ms={"p50": 7_330.0, "p90": 54_321.0, "p99": 123_456.0})
    assert "latency   p50 7.33 s   p90 54.3 s   p99 123 s" in text_of(view(slow), 120)
    assert "latency   p50 7.33 s   p90 54.3 s   p99 123 s" in text_of(view(slow), 60, 14)
    assert "p99" not in text_of(view(slow), 40, 14)
    assert "latency   p50 7.33 s   p90 54.3 s" in text_of(view(slow), 40, 14)
    assert "p50 7.33 s  p90 54.3 s  p99 123 s" in plain_line(view(slow))


def test_latencies_of_a_slow_run_are_not_cut_off() -> None:
    latencies = Latencies()
    latencies.add(2_000.0, 100)
    assert latencies.percentiles_ms()["p99"] == pytest.approx(2e6, rel=0.02)


def test_who_decoded_is_said_in_the_room_there_is() -> None:
    by_loaders = {"CMYK": 400, "progressive": 1_600, "too large": 1}
    decoding = replace(snapshot(), decoded=Decoded(198_000, 9.35e9, by_loaders))
    line = "decoded 198,000 files on the GPU, 9.35 GB/s; 2,001 by loaders (progressive 1,600, CMYK 400, too large 1)"
    assert line in plain_line(view(decoding))
    said = {
        100: "9.35 GB/s; 2,001 by loaders (progressive 1,600, ...) ",
        80: "9.35 GB/s; 2,001 by loaders  ",
        60: "decoded 198,000 files on the GPU; 2,001 by loaders  ",
        40: "decoded 198,000 files on the GPU; 2,001 ",
    }
    for width, text in said.items():
        assert text in text_of(view(decoding), width, 40 if width > 60 else 14), width
    assert "decoded" not in text_of(view(decoding), 60, 8), "what matters more has the room"
    for nothing in (None, Decoded(0, 0.0, {})):
        assert "decoded" not in text_of(view(replace(decoding, decoded=nothing)))
        assert "decoded" not in plain_line(view(replace(decoding, decoded=nothing)))
    said_in_json = {"gpu": 198_000, "gpu_bytes_per_s": 9.35e9, "loaders": by_loaders}
    assert json.loads(json_line(view(decoding)))["decoded"] == said_in_json
    assert "decoded" not in json.loads(json_line(view()))


def test_files_by_way() -> None:
    assert decoded_line(Decoded(198_000, 9.35e9, {})) == "decoded 198,000 files on the GPU, 9.35 GB/s"
    assert decoded_line(Decoded(198_000, 9.35e9, {}), 32) == "decoded 198,000 files on the GPU"
    many = Decoded(2, 0.0, {f"{n}": 1 for n in range(6)})
    assert decoded_line(many).endswith("6 by loaders (0 1, 1 1, 2 1, 3 1, 4 1, ...)")
    for width in range(len(decoded_line(many))):
        line = decoded_line(many, width)
        assert len(line) <= width or line == "decoded 2 files on the GPU; 6 by loaders"


def test_starting_says_what_it_waits_for() -> None:
    stages = (stage("decode", workers=2, up=2), stage("infer", workers=1), stage("complete", up=1))
    starting = view(replace(snapshot(0, 0, "starting"), stages=stages))
    waits = "0 of 1 engines up (they read the model, prepare its kernels and measure themselves); 2 of 2 loaders up"
    assert plain_line(starting) == f"starting 00:12  {waits}"
    for width, height in ((120, 40), (76, 30), (60, 14), (40, 14)):
        assert waits in " ".join(text_of(starting, width, height).replace("│", " ").split())


def test_loading_says_how_much_and_how_long() -> None:
    stages = (stage("decode", workers=2, rate=200.0),)
    loading = view(replace(snapshot(0, 0, "loading"), stages=stages, loaded=1_000, to_load=50_000))
    assert plain_line(loading).startswith("loading 00:12  2.0 %  1,000/50,000 loaded  ")
    assert "  ETA 04:05" in plain_line(loading)
    for width, height in ((100, 40), (60, 14)):
        text = text_of(loading, width, height)
        assert "1,000 / 50,000 loaded" in text
        assert "ETA 04:05" in text


def test_a_small_terminal_gets_what_matters_most() -> None:
    gpus = tuple(GpuLoad(i, "NVIDIA H200", 0.5, 1 << 30, 140 << 30, 100.0, 700.0, 1980, 61) for i in range(8))
    shown = view(replace(snapshot(), latency_ms={"p50": 1.0}), Load(8, 0.5, 2 << 30, 8 << 30, gpus))
    assert "8 GPUs  50 %   8.0 GiB   800 W" in text_of(shown, 60, 14)
    assert text_of(shown, 100, 24).count("GPU") == 8, "without blank lines there is room for all"
    for width in (1, 10, 20, 40, 60, 75, 76, 100, 300):
        for height in (1, 2, 5, 9, 13, 20, 50):
            lines = text_of(shown, width, height).split("\n")
            assert len(lines) <= height
            assert {cell_len(line) for line in lines} == {min(width, 100)}
    least = text_of(shown, 60, 4)
    for said in ("running 00:12", "25.0 %", "80.5 img/s now", "▶ infer"):
        assert said in least


def test_history_has_rates_and_stage_means() -> None:
    history = History()
    done = 0
    for step in range(41):
        now = step * 0.25
        busy = step >= 20  # infer works for the second half only
        done += 25 if busy else 0
        stages = (
            stage("decode", done=7),
            stage("infer", workers=2, done=done, busy=0.5 if busy else 0.0, queued=5 if busy else 0),
        )
        history.add(now, Snapshot("running", now, done, 10_000, 0.0, 0.0, stages, done, now))
    assert len(history.columns) == 10
    assert history.columns[-1] == pytest.approx(100.0)
    assert history.peak == pytest.approx(100.0)
    assert history.recent == pytest.approx(sum(history.columns) / 10)
    decode, infer = history.stages()
    assert (decode.name, decode.done, decode.samples_per_second, decode.busy) == ("decode", 7, None, None)
    assert infer.workers == 2
    assert infer.samples_per_second == pytest.approx(100.0)
    assert infer.busy == pytest.approx(0.5)
    assert infer.active_s == pytest.approx(5.25)


def test_history_does_not_grow_without_end() -> None:
    history = History()
    for second in range(COLUMNS + 50):
        history.add(float(second), replace(snapshot(second, 10**6), counted_s=float(second)))
    assert len(history.columns) == COLUMNS
    before = History()
    before.add(0.0, snapshot(0, 0, "loading"))
    before.add(5.0, snapshot(0, 0, "loading"))
    assert not before.columns
    assert before.recent is None


def test_plain_and_json_lines() -> None:
    line = plain_line(view(load=Load(8, 0.5, 1, 2)))
    assert line == (
        "running 00:12  25.0 %  50/200  80.5 img/s now  70.0 mean  ETA 00:04  "
        "busy: decode 0 %, infer 97 %, complete 1 %  slowest: infer  cpu 50 %"
    )
    record = json.loads(json_line(view()))
    assert record["completed"] == 50
    assert record["slowest"] == "infer"
    assert record["stages"][1]["name"] == "infer"
    assert abs(record["time"] - time.time()) < 60


def test_the_mode_follows_options_and_stream() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert choose_mode(json_lines=False, dashboard=True, stream=Terminal()) == "live"
    assert choose_mode(json_lines=False, dashboard=True, stream=io.StringIO()) == "plain"
    assert choose_mode(json_lines=False, dashboard=False, stream=Terminal()) == "plain"
    assert choose_mode(json_lines=True, dashboard=True, stream=Terminal()) == "json"


def test_plain_mode_tells_every_phase_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_module, "PLAIN_INTERVAL_S", 3600.0)
    stream = io.StringIO()
    phases = iter([*["loading"] * 3, *["running"] * 3])
    with Dashboard(lambda: snapshot(phase=next(phases, "done")), "t", mode="plain", interval=0.02, stream=stream):
        wait_for(lambda: "done" in stream.getvalue())
    said = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert said == ["loading", "running", "done", "done"]


def test_json_mode_prints_a_snapshot_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is at each second for five ticks."""
    stream, ticks = io.StringIO(), itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) // 5, time=time.time, thread_time=time.thread_time)
    monkeypatch.setattr(dashboard_module, "time", clock)
    with Dashboard(snapshot, "t", mode="json", interval=0.001, total=400, stream=stream) as dashboard:
        wait_for(lambda: stream.getvalue().count("\n") >= 3)
    assert dashboard.error is None
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    seconds = (next(ticks) - 2) // 5  # of the last tick, at which there is a line in any case
    assert len(records) == seconds + 2
    assert {r["expected"] for r in records} == {400}
    assert records[0]["load"]["cores"] >= 1


def test_live_mode_draws_and_restores_the_terminal(terminal: Terminal) -> None:
    stream, written, everything = terminal
    with Dashboard(snapshot, "a title", mode="live", interval=0.05, stream=stream) as dashboard:
        wait_for(lambda: b"a title" in written)
    out = everything()
    assert dashboard.error is None
    assert "a title" in out
    assert out.rfind(SHOW_CURSOR) > out.rfind(HIDE_CURSOR) >= 0


def test_a_ctrl_c_that_the_terminal_echoes_leaves_the_frame_in_its_place(terminal: Terminal) -> None:
    """The cursor waits where the last line begins: after 100 characters of 100, ^C would begin the next row."""
    stream, written, everything = terminal
    with Dashboard(snapshot, "a title", mode="live", interval=0.05, stream=stream):
        wait_for(lambda: written.count("╭".encode()) > 1)
    *drawn, last = everything().replace("\x1b[0m", "").split("╯")[1:]
    assert drawn
    assert all(after.startswith("\r\r\x1b[2K") for after in drawn)
    assert last.count("\n") == 1, "no row is empty between the last frame and what follows it"


def test_lines_of_the_run_go_through_the_live_view_on_its_terminal(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, written, everything = terminal
    here, file = Console(file=stream, soft_wrap=True), io.StringIO()
    with Dashboard(snapshot, "a title", mode="live", interval=0.05, stream=stream) as dashboard:
        wait_for(lambda: b"a title" in written)
        dashboard.say("a line [bold]as it is[/bold] :smile:", here)
        dashboard.say("for a file", Console(file=file))
    dashboard.say("after the end", here)
    out = everything()
    at = out.index("a line [bold]as it is[/bold] :smile:")
    # The frame above it is wiped, and it is drawn again below.
    assert out[:at].rstrip("\r").endswith("\x1b[2K")
    assert "a title" in out[at : out.index("after the end")]
    assert "for a file" not in out
    assert file.getvalue() == "for a file\n"


def test_the_terminal_is_restored_when_the_run_raises(
    terminal: Terminal,
) -> None:
    stream, written, everything = terminal
    dashboard = Dashboard(snapshot, "a title", mode="live", interval=0.05, stream=stream)

    def run() -> None:
        with dashboard:
            wait_for(lambda: b"a title" in written)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    dashboard.close()  # twice is fine
    out = everything()
    assert out.rfind(SHOW_CURSOR) > out.rfind(HIDE_CURSOR) >= 0
    assert not dashboard._thread.is_alive()


def test_a_run_outlives_its_dashboard(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    stream, _, everything = terminal
    calls = iter([snapshot(), snapshot()])
    with Dashboard(lambda: next(calls), "t", mode="live", interval=0.02, stream=stream) as dashboard:
        wait_for(lambda: dashboard.error is not None)
    assert isinstance(dashboard.error, StopIteration)
    assert "the dashboard stopped: StopIteration" in capsys.readouterr().err
    out = everything()
    assert out.rfind(SHOW_CURSOR) > out.rfind(HIDE_CURSOR) >= 0


def test_the_live_view_costs_little(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 % of a core is 2.5 ms a refresh, the machine's load read each time.

    It is the least of many that counts: what else runs on the machine can only add to one.
    """
    stream, _, _ = terminal
    monkeypatch.setattr(dashboard_module, "LOAD_INTERVAL_S", 0.0)
    shown, costs_s = scene.snapshot("running"), list[float]()

    def observe(*_: object) -> None:
        costs_s.append(dashboard.cost_s)

    dashboard = Dashboard(lambda: shown, "t", mode="live", stream=stream, interval=0.01, observe=observe)
    dashboard.history.columns.extend(range(100))
    with dashboard:
        wait_for(lambda: len(costs_s) > 40)
    assert dashboard.error is None
    assert min(b - a for a, b in itertools.pairwise(costs_s)) < 0.0025


def test_the_machine() -> None:
    with Monitor() as monitor:
        load = monitor.read()
    assert load.cores >= 1
    assert 0 < load.memory_bytes <= load.memory_total_bytes
    assert 0 <= load.cpu <= 1
    machine = describe_machine()
    assert len(machine["gpus"]) == len(load.gpus)
    assert json.loads(json.dumps(machine)) == machine


class Stuck(io.StringIO):
    """A pipe that nobody reads: writing waits until `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.released = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.waiting.set()
        self.released.wait(PATIENCE_S)
        return len(text)


def test_a_terminal_that_takes_nothing_does_not_hold_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.dashboard.GRACE_S", 0.2)
    stream = Stuck()
    dashboard = Dashboard(snapshot, title="t", mode="plain", stream=stream)
    with dashboard:
        assert stream.waiting.wait(PATIENCE_S)
    assert not stream.released.is_set()
    stream.released.set()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_count_that_is_not_known_is_not_made_up(width: int) -> None:
    """What has been listed so far is no total: no share, and no time that is left."""
    shown = replace(view(snapshot(completed=5200, expected=0)), eta_s=None)
    text = text_of(shown, width)
    assert "5,200 so far" in text
    assert "80.5 img/s now" in text
    for line in (text, plain_line(shown)):
        assert "ETA" not in line
        assert "5,200 /" not in line
    assert plain_line(shown).startswith("running 00:12  5,200 so far  80.5 img/s now")
    history = History()
    for second in range(4):
        history.add(second, replace(shown.snapshot, counted=100.0 * second, counted_s=float(second)))
    assert history.recent == 100.0


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_total_that_is_reckoned_is_said_to_be(width: int) -> None:
    shown = view(replace(snapshot(completed=5200, expected=11000), estimated=True))
    assert "5,200 / ~11,000" in text_of(shown, width)
    assert "5,200/~11,000  " in plain_line(shown)
    assert "ETA" in plain_line(shown)
    assert json.loads(json_line(shown))["estimated"]
    reached = view(replace(snapshot(completed=11000, expected=11000), estimated=True))
    assert reached.progress is not None
    assert not reached.progress.ended
    counted = view(snapshot(completed=11000, expected=11000))
    assert counted.progress is not None
    assert counted.progress.ended
    assert "~" not in plain_line(counted)


def test_what_a_run_waits_for_is_its_front_ends_to_say() -> None:
    idle = replace(view(snapshot(completed=0, expected=0)), eta_s=None)
    assert "waiting for the first query" in plain_line(idle)
    assert "waiting for the first answer" in plain_line(replace(idle, awaited="the first answer"))
    shown = io.StringIO()
    waiting = snapshot(completed=0, expected=0)
    with Dashboard(lambda: waiting, "t", mode="plain", stream=shown, awaited="a train"):
        pass
    assert "waiting for a train" in shown.getvalue()
