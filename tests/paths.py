"""Where tests find the reference data, which lives beside a checkout and is never part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(
    not (SHARED / "model-v0.5" / "model" / "model").is_file(),
    reason="needs ../shared beside the checkout: the published model, golden tensors and images",
)
