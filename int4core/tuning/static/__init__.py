"""What kernels should do on chips that are not at hand: compiled for them, their machine code counted, nothing run."""
