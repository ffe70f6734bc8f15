"""The report of a LoadGen run as a page: what there is of it when the run is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.loadgen.results import NOT_PREDICTED
from pipeline.loadgen.samples import BadFile
from pipeline.report.accuracy import Accuracy
from pipeline.report.energy import Energy
from pipeline.report.history import History
from pipeline.report.page import Ending, Reporter
from pipeline.report.verdict import Verdict
from pipeline.samples.classes import read_classes
from pipeline.samples.sources import PathLocator, Source
from pipeline.session.spec import SessionSpec


def finish(
    reporter: Reporter,
    spec: SessionSpec,
    *,
    title: str,
    classes: int,
    predictions: npt.NDArray[np.int32],
    bad: Iterable[BadFile],
    history: History,
    accuracy: Accuracy | None,
    verdict: Verdict | None,
    energy: Energy | None,
    summary: Mapping[str, Any],
) -> Ending:
    """Give `reporter` the answers of a run that is over; returns the rest of what is known of it.

    `predictions` are by sample, `summary` is summary.json's. Raises PipelineError.
    """
    given = predictions[predictions != NOT_PREDICTED]
    reporter.answers.add_classes(given)
    for file in bad:
        reporter.answers.add_error(Source(str(file.path), PathLocator(str(file.path))), file.why)
    result, throughput = summary["loadgen"] or {}, summary["throughput"] or {}
    asked = throughput.get("completed", 0)
    facts = {"LoadGen": result}
    facts |= {name.capitalize(): summary[name] for name in ("settings", "versions", "hardware")}
    return Ending(
        title=title,
        rate=result.get("samples_per_second") or throughput.get("samples_per_second_mean"),
        peak=history.peak or None,
        stages=history.stages(),
        preparation=spec.preparation,
        verdict=verdict,
        energy=energy,
        accuracy=() if accuracy is None else (("top-1", accuracy),),
        class_names=read_classes(None, spec.model, classes),
        facts=facts,
        notes=(f"LoadGen asked {asked:,} times for {len(given):,} images",) if asked > len(given) else (),
    )
