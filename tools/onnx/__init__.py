"""`python -m tools.onnx`: a model folder to ONNX and back."""
