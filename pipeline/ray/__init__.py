"""The same classification on Ray Data: an actor that keeps a GPU busy (`Classifier`), and datasets of answers.

`import ray` in here is the library; it is imported where it is needed and not before.
"""

from pipeline.ray.classifier import Classifier
from pipeline.ray.dataset import classify

__all__ = ["Classifier", "classify"]
