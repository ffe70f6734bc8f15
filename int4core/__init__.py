"""The INT4 engine: model directory format, exact integer arithmetic, NumPy and CUDA backends."""

from int4core.engine import Engine
from int4core.errors import EngineError, Int4CoreError, ModelError
from int4core.model import Model

__all__ = ["Engine", "EngineError", "Int4CoreError", "Model", "ModelError"]
