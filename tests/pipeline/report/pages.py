"""A report of a run that never was, with names as hostile as names can be."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report.accuracy import accuracy
from pipeline.report.energy import Energy, GpuUse
from pipeline.report.history import History
from pipeline.report.page import Ending, Reporter
from pipeline.report.verdict import judge
from pipeline.samples.sources import BytesLocator, Source
from pipeline.stages.load import Preparation
from pipeline.telemetry.ceilings import Ceilings
from pipeline.telemetry.metrics import Snapshot, StageSnapshot
from tests.pipeline.report.columns import Columns

SCRIPT = "<script>document.title='run'</script>"
QUOTES = "\"'><img src=x onerror=\"document.title='run'\">"
TEMPLATE = "{{ 7 * 7 }}{% raw %}"
LATIN = os.fsdecode(b"caf\xe9.jpg")
ESCAPES = "\x1b[31mred\x07\n\x00\u202egpj"
HOSTILE = (SCRIPT, QUOTES, TEMPLATE, LATIN, ESCAPES, "&amp;lt;", "]]>-->", "n" * 5000)
ERRORS = 230
CLASSES = 50


def image(number: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), (5 * number % 256, 90, 160)).save(file, "PNG")
    return file.getvalue()


def reporter(path: Path, *, seconds: int = 30, gpus: int = 2) -> Reporter:
    """Fed with a run of that length, all of its keys among HOSTILE or beginning with one of them."""
    labels = iter(range(1, 10**6))
    report = Reporter(path, CLASSES, lambda _key: next(labels) % 3)
    for tick in range(4 * seconds):
        now = tick / 4
        phase = "starting" if now < 3 else "running"
        done = max(0.0, 100 * (now - 3))
        stages = tuple(StageSnapshot(name, 2, int(done), 100, 0.9, 1, 9) for name in ("decode", "infer"))
        loads = tuple(
            GpuLoad(index, f"GPU {SCRIPT}", 0.9, 1, 2, 300.0 + index, 700.0, 1700 + index, 50) for index in range(gpus)
        )
        snapshot = Snapshot(phase, now, int(done), 3000 * (phase == "running"), 100, 100, stages, done, now)
        report.observe(now, snapshot, Load(4, 0.5, 1, 2, loads))
    n = ERRORS + 200
    keys = [f"{HOSTILE[i % len(HOSTILE)]}{'' if i < len(HOSTILE) else i}" for i in range(n)]
    # Every other of the lowest has a picture; the last of them are errors.
    sources = [Source(key, BytesLocator(image(i) if i % 2 else b"no image")) for i, key in enumerate(keys)]
    rows = Columns(
        keys,
        (np.arange(n) % CLASSES).astype(np.int32),
        (0.05 + 0.9 * np.arange(n) / n).astype(np.float32),
        {n - 1 - i: f"why {HOSTILE[i % len(HOSTILE)]}" for i in range(ERRORS)},
    )
    report.answers.add(rows, sources)
    return report


def ending() -> Ending:
    names = [f"class {i}{HOSTILE[i % 3]}" for i in range(CLASSES)]
    right = np.arange(100) % 4 > 0
    return Ending(
        title=f"a model {SCRIPT} on a GPU",
        rate=100.5,
        peak=120.0,
        stages=History().stages(),
        preparation=Preparation("images", 64, None),
        verdict=judge(
            Ceilings(rate=100.5, engine=105.0, decode_per_loader=400.0, decode_timed=True, loaders=2, cores=2)
        ),
        energy=Energy(3000, 30.0, (GpuUse(0, f"GPU {SCRIPT}", 9000.0, 300.0, 1700.0),)),
        accuracy=(("top-1", accuracy(right, np.ones(100))),),
        class_names=names,
        facts={
            "Settings": {"options": {"model": Path("/tmp") / LATIN, "batch": 8, "trace": None}, SCRIPT: QUOTES},
            "Versions": {f"library {i}": "1.0" for i in range(300)},
        },
        notes=(f"a note {SCRIPT}",),
    )
