"""The rows that are there already: read in tasks, and left where all listing tasks find them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ray.delivery import Count, Totals
from pipeline.ray.listing import TASK_CPUS
from pipeline.samples.keys import DIGEST, SortedKeys, digests
from pipeline.sinks.base import Format
from pipeline.sinks.durable import readably

# Tasks that read, at most: a task reads some parts, one after another.
MOST_TASKS = 256


def read_earlier(ray: Any, parts: Sequence[Path], file_format: Format, count: Count | None) -> tuple[Any, Totals]:
    """A reference to the `SortedKeys` of the rows in `parts`, and what they come to. The driver sees no key."""
    tasks = min(len(parts), MOST_TASKS)
    read = ray.remote(_read).options(num_cpus=TASK_CPUS, num_returns=2)
    answers = [read.remote(parts[n::tasks], file_format, count) for n in range(tasks)]
    merge = ray.remote(_merged).options(num_cpus=TASK_CPUS)
    done = merge.remote(*(keys for keys, _ in answers))
    return done, sum(ray.get([totals for _, totals in answers]), Totals())


def _read(parts: Sequence[Path], file_format: Format, count: Count | None) -> tuple[npt.NDArray[np.bytes_], Totals]:
    found, totals = [np.empty(0, DIGEST)], Totals()
    for path in parts:
        with readably(path):
            for keys, errors in file_format.keys(path):
                found.append(digests(keys))
                totals += Totals(len(keys), errors)
            if count is not None:
                for rows in file_format.read(path):
                    totals += Totals(counts=count(rows))
    return np.concatenate(found), totals


def _merged(*parts: npt.NDArray[np.bytes_]) -> SortedKeys:
    return SortedKeys.merged(parts)
