"""Kernels on NVIDIA GPUs: what a convolution is, how it is cut and laid out, how it is compiled."""
