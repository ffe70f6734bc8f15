"""LoadGen's queries as a client of the session: samples it has loaded go in, their classes go back to it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.arrays import Classes, Ids, Indices, Slots
from pipeline.loadgen.results import NOT_PREDICTED
from pipeline.loadgen.samples import Samples
from pipeline.session.batches import Answered


class Complete(Protocol):
    """Is notified of answers."""

    def __call__(self, ids: Ids, classes: Classes) -> None:
        """The classes (n,) of LoadGen's samples (n,)."""


class Queries:
    """The client. LoadGen waits for every answer: batches are held back for others only while an engine is at work.

    Attributes:
        predictions: the class of every sample that was asked for, int32 (samples,); NOT_PREDICTED for the others.
    """

    def __init__(self, samples: Samples, count: int, complete: Complete) -> None:
        self._samples = samples
        self._complete = complete
        self.predictions: npt.NDArray[np.int32] = np.full(count, NOT_PREDICTED, dtype=np.int32)

    def slots_of(self, indices: Indices) -> Slots:
        return self._samples.slots_of(indices)

    def filling(self) -> bool:
        return False

    def deliver(self, answered: Answered) -> None:
        self.predictions[answered.indices] = answered.classes
        self._complete(answered.ids, answered.classes)
