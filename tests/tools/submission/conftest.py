from tests.pipeline.conftest import images, model_dir

__all__ = ["images", "model_dir"]
