"""Top-k classes with their scores, defined so that every backend gives the same bits.

    logit   float32, accumulator / out_scale (`quantize.dequantize_logits`)
    order   the larger logit first, of equal ones the lower class
    score   exp(logit - largest) / sum over all classes of exp(logit - largest), in float64, rounded once to float32

What is exact by IEEE 754 alone is the same everywhere: sums, products and quotients of two numbers, each rounded to
nearest. So nothing else is used. `exponential` is a fixed sequence of them, without fused multiply-add, and
`folded_sum` adds in a fixed order, one that a block of GPU threads can follow: see kernels/top_k.cu.

A score before its rounding to float32 is within `RELATIVE_ERROR` of the real softmax of the float32 logits; so it is
the float32 nearest to it but for values that close to the middle of two.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from int4core.errors import EngineError
from int4core.layers import Float32Array, Int32Array
from int4core.quantize import dequantize_logits

MAX_K = 16
"""The most classes that can be asked for."""

LANES = 256
"""Partial sums of `folded_sum`: threads of a block."""

LOWEST = -104.0
"""Lesser exponents count as this one: exp(-104) is below half of the least float32, so its score is 0 either way."""

LOG2_E, LN_2 = float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.62e42fefa39efp-1")

COEFFICIENTS = tuple(1 / math.factorial(power) for power in range(12))
"""Of exp(r) in powers of r, for |r| <= ln 2 / 2."""

RELATIVE_ERROR = 1e-13
"""Of an exponential at most 2.5e-14: the difference of logits is rounded by up to 7e-15, its product with log2 e by
1.1e-14, and the series ends 6e-15 short. A score is the quotient of two."""

Float64Array = npt.NDArray[np.float64]


def check_k(k: int, classes: int) -> None:
    """Raises EngineError when `k` classes of `classes` cannot be asked for."""
    most = min(MAX_K, classes)
    if not 1 <= k <= most:
        raise EngineError(f"top {k} of {classes} classes: ask for 1 to {most}")


def top_k(accumulators: Int32Array, out_scale: Float32Array, k: int) -> tuple[Int32Array, Float32Array]:
    """The `k` best classes and their scores.

    Args:
        accumulators: int32 (N, C), the last linear layer's sums.
        out_scale: float32 (C,), finite and positive.
        k: 1..16, and not more than C.

    Returns:
        Classes int32 (N, k), the best first, and scores float32 (N, k), which are shares of 1 over all C classes.

    Raises:
        EngineError: `k` is out of range.
    """
    check_k(k, accumulators.shape[1])
    logits = dequantize_logits(accumulators, out_scale)
    ids = largest(logits, k)
    best = np.take_along_axis(logits, ids, axis=1).astype(np.float64)
    total = folded_sum(exponential(logits - best[:, :1]))
    scores = exponential(best - best[:, :1]) / total[:, None]
    return ids, scores.astype(np.float32)


def largest(logits: Float32Array, k: int) -> Int32Array:
    """Classes of the `k` largest of each row of float32 (N, C), the largest first, of equal ones the lower class.

    By keys that are integers and all different, so that any way to sort gives the same.
    """
    bits = logits.view(np.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, floats below zero are in reverse
    classes = logits.shape[1]
    keys = (ordered.astype(np.int64) << 32) - np.arange(classes)
    best = np.sort(np.partition(keys, classes - k, axis=1)[:, classes - k :], axis=1)[:, ::-1]
    return (-best & 0xFFFFFFFF).astype(np.int32)


def exponential(x: Float64Array) -> Float64Array:
    """exp(x) of float64, any shape, for x <= 0; see LOWEST."""
    scaled = np.maximum(x, LOWEST)
    scaled *= LOG2_E
    whole = np.rint(scaled)
    scaled -= whole
    scaled *= LN_2
    value = np.full_like(scaled, COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        value *= scaled
        value += coefficient
    powers: Float64Array = np.ldexp(value, whole.astype(np.int32))
    return powers


def folded_sum(terms: Float64Array) -> Float64Array:
    """Sums of the rows of float64 (N, C): lane i adds terms i, i + LANES, ... in order; then halves are added."""
    lanes = np.zeros((len(terms), LANES))
    for start in range(0, terms.shape[1], LANES):
        part = terms[:, start : start + LANES]
        lanes[:, : part.shape[1]] += part
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]
