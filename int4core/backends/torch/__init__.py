"""The executor for CPUs with PyTorch: its integer convolutions (oneDNN), and passes compiled by Numba around them."""
