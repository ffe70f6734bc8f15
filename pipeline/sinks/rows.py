"""Answers as columns: what sinks write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

COLUMNS = ("key", "class_id", "class_name", "score", "top_ids", "top_scores", "error")


@dataclass(frozen=True, eq=False)
class Rows:
    """Answers to n sources.

    Attributes:
        keys: the sources' keys.
        class_ids: int32 (n,), the class with the highest score.
        scores: float32 (n,), its softmax.
        top_ids: int32 (n, k), the k best classes, best first.
        top_scores: float32 (n, k), theirs.
        errors: why there is no answer, by row; what the arrays hold in such a row is of no account.
    """

    keys: Sequence[str]
    class_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top_scores: npt.NDArray[np.float32]
    errors: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.keys)
        k = self.top_ids.shape[-1]
        due = {
            "class_ids": (np.int32, (n,)),
            "scores": (np.float32, (n,)),
            "top_ids": (np.int32, (n, k)),
            "top_scores": (np.float32, (n, k)),
        }
        for name, (dtype, shape) in due.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        if any(not 0 <= row < n for row in self.errors):
            raise ValueError(f"an error in a row beyond the {n} there are")

    def __len__(self) -> int:
        return len(self.keys)

    def answered(self) -> npt.NDArray[np.bool_]:
        """Which rows have an answer: bool (n,)."""
        answered = np.ones(len(self), dtype=np.bool_)
        answered[list(self.errors)] = False
        return answered

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of `parts`, at least one, in that order."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        return cls(
            list(chain.from_iterable(part.keys for part in parts)),
            np.concatenate([part.class_ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.top_ids for part in parts]),
            np.concatenate([part.top_scores for part in parts]),
            {start + row: why for start, part in zip(starts, parts, strict=False) for row, why in part.errors.items()},
        )


def writable(text: str) -> str:
    """`text` in UTF-8 and without NUL, for those who read it; it cannot be turned back."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
