"""The INT4 engine: model directory format, exact integer arithmetic, NumPy and CUDA backends."""

from int4core.errors import EngineError, Int4CoreError, ModelError

__all__ = ["EngineError", "Int4CoreError", "ModelError"]
