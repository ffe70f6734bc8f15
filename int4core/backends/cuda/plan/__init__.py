"""What runs, in which order, and where its tensors lie: no kernel, no device."""
