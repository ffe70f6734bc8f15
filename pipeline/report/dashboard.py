"""Watching a run: a live view on a terminal, plain lines elsewhere, or JSON lines.

It only reads snapshots, in a thread of its own: nothing on the way from issue to answer waits for it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, TextIO, TypeAlias

from rich.console import Console
from rich.live import Live

from pipeline.machine.hardware import Load, Monitor
from pipeline.report.decoded import decoded_line
from pipeline.report.drawing import clock, duration, percent, rate
from pipeline.report.energy import EnergyMeter
from pipeline.report.frame import Frame
from pipeline.report.history import History
from pipeline.report.view import View
from pipeline.telemetry.metrics import Snapshot

Mode: TypeAlias = Literal["live", "plain", "json"]

INTERVAL_S = 0.25
LOAD_INTERVAL_S = 1.0
JSON_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 3.0


def choose_mode(*, json_lines: bool, dashboard: bool, stream: TextIO | None = None) -> Mode:
    """What suits the user's options and the stream (default: stderr) it will be written to."""
    if json_lines:
        return "json"
    return "live" if dashboard and (stream or sys.stderr).isatty() else "plain"


# How long the last line may take to be printed.
GRACE_S = 5.0


class Dashboard:
    """Shows a run from `with` to its end; the terminal is restored on every way out.

    Attributes:
        history: the rates over time and the means per stage.
        energy: what the GPUs used.
        cost_s: CPU seconds that its thread has used so far.
        error: what ended it early, if anything did: a run never fails because of its dashboard.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        title: str,
        *,
        mode: Mode,
        interval: float = INTERVAL_S,
        total: int = 0,
        stream: TextIO | None = None,
        gpus: tuple[int, ...] | None = None,
        observe: Callable[[float, Snapshot, Load | None], None] | None = None,
        awaited: str = View.awaited,
    ) -> None:
        """
        Args:
            snapshot: asked for the state of the run every `interval` seconds.
            mode: `live`, `plain` (a line every few seconds) or `json` (a snapshot a line, each second).
            total: samples the run will answer, where that is known before they are issued.
            stream: default: stderr; stdout for JSON.
            gpus: driver indices of the GPUs to show; None shows all.
            observe: called from this thread with the monotonic time, in seconds, a snapshot and the machine's load.
            awaited: what the run waits for once it is set up.
        """
        self._snapshot = snapshot
        self._title = title
        self._mode = mode
        self._interval = interval
        self._total = total
        self._stream = stream or (sys.stdout if mode == "json" else sys.stderr)
        self._gpus = gpus
        self._observe = observe
        self._awaited = awaited
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._live: Live | None = None
        self._monitor: Monitor | None = None
        self._load: Load | None = None
        self._load_due = 0.0
        self._line_due = 0.0
        self._phase = ""
        self.history = History()
        self.energy = EnergyMeter()
        self.cost_s = 0.0
        self.error: Exception | None = None

    def __enter__(self) -> Dashboard:
        self._monitor = Monitor(self._gpus)
        if self._mode == "live":
            # It is refreshed from our thread, so that its cost is one thread's and can be measured.
            # What goes to a file stays out of its way.
            self._live = Live(
                console=Console(file=self._stream),
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def say(self, line: str, console: Console) -> None:
        """Print a line of the run on `console`: above the live view, where that is on the same terminal."""
        live = self._live
        if live is not None and console.is_terminal:
            live.console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)
        else:
            console.print(line)

    def close(self) -> None:
        """Show the last state and restore the terminal. Safe to call twice."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(GRACE_S)
            if self._thread.is_alive():
                return  # its output goes nowhere and holds it: so it would us
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._monitor is not None:
            self._monitor.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._tick(last=False)
                self._stop.wait(self._interval)
            self._tick(last=True)
        except Exception as error:
            self.error = error
            if self._live is not None:
                self._live.stop()
            message = f"the dashboard stopped: {type(error).__name__}: {error}; the run goes on"
            print(message, file=sys.stderr, flush=True)

    def _tick(self, *, last: bool) -> None:
        now = time.monotonic()
        snapshot = self._snapshot()
        self.history.add(now, snapshot)
        phase, self._phase = self._phase, snapshot.phase
        if (last or now >= self._load_due or snapshot.phase != phase) and self._monitor is not None:
            self._load, self._load_due = self._monitor.read(), now + LOAD_INTERVAL_S
            self.energy.add(now, snapshot, self._load)
        if self._observe is not None:
            self._observe(now, snapshot, self._load)
        if self._live is not None:
            self._live.update(Frame(self._view(snapshot)), refresh=True)
        elif last or now >= self._line_due or (snapshot.phase != phase and self._mode == "plain"):
            every = JSON_INTERVAL_S if self._mode == "json" else PLAIN_INTERVAL_S
            self._line_due = now + every
            view = self._view(snapshot)
            line = json_line(view) if self._mode == "json" else plain_line(view)
            print(line, file=self._stream, flush=True)
        self.cost_s = time.thread_time()

    def _view(self, snapshot: Snapshot) -> View:
        expected = max(self._total, snapshot.expected)
        pace = self.history.recent or snapshot.rate_mean
        return View(
            title=self._title,
            snapshot=snapshot,
            expected=expected,
            eta_s=(expected - snapshot.completed) / pace if pace and expected else None,
            columns=tuple(self.history.columns),
            peak=self.history.peak,
            load=self._load,
            awaited=self._awaited,
        )


def plain_line(view: View) -> str:
    """`running 00:12  47.3 %  5,200/11,000  812.4 img/s now  799.1 mean  ETA 00:07  ...  busy: infer 99 %, ...`"""
    snapshot, progress = view.snapshot, view.progress
    parts = [f"{snapshot.phase} {clock(snapshot.elapsed_s)}"]
    if progress is None:
        return "  ".join([*parts, view.waiting])
    if progress.expected:
        parts.append(percent(progress.done, progress.expected))
        parts.append(f"{progress.done:,}/{progress.whole}{progress.what}")
    else:
        parts.append(progress.counts)
    parts.append(f"{rate(snapshot.rate_now)} img/s now")
    parts.append(f"{rate(snapshot.rate_mean)} mean")
    if progress.eta_s is not None and not progress.ended:
        parts.append(f"ETA {clock(progress.eta_s)}")
    parts += [f"{name} {duration(ms)}" for name, ms in snapshot.latency_ms.items()]
    for stage in snapshot.stages:
        if stage.name == "infer" and len(stage.worker_rates) > 1:
            parts.append(f"{stage.name} " + " + ".join(rate(value) for value in stage.worker_rates))
    if snapshot.decoded:
        parts.append(decoded_line(snapshot.decoded))
    stages = ", ".join(f"{s.name} {s.busy * 100:.0f} %" for s in snapshot.stages)
    parts.append(f"busy: {stages}")
    if snapshot.slowest is not None:
        parts.append(f"slowest: {snapshot.slowest}")
    if view.load is not None:
        parts.append(f"cpu {view.load.cpu * 100:.0f} %")
        parts += [f"gpu{g.index} {g.busy * 100:.0f} %" for g in view.load.gpus if g.busy is not None]
    return "  ".join(parts)


def json_line(view: View) -> str:
    """The snapshot as one JSON object, with the wall-clock time, the title and the machine's load."""
    snapshot = view.snapshot
    record: dict[str, Any] = {
        "time": round(time.time(), 3),
        "title": view.title,
        **snapshot.as_dict(),
        "expected": view.expected,
        "eta_s": view.eta_s,
        "slowest": snapshot.slowest,
        "load": None if view.load is None else view.load.as_dict(),
    }
    return json.dumps(record, allow_nan=False)
