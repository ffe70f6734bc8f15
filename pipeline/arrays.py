"""The arrays that stages and front ends hand one another."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.uint64]
"""LoadGen's, of a query's samples."""

Indices: TypeAlias = npt.NDArray[np.int64]
"""Samples, counted from 0."""

Slots: TypeAlias = npt.NDArray[np.int32]
"""Of the arena."""

Classes: TypeAlias = npt.NDArray[np.int32]
"""Answers."""
