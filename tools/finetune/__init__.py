"""Fine-tune an FP32 bottleneck ResNet into the INT4 format: `python -m tools.finetune COMMAND`."""
