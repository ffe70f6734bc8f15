"""The executor for any machine: exact integer arithmetic on NumPy and its BLAS."""
