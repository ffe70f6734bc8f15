"""From kernel sources to launches: NVRTC, the cache of binaries, the driver's calls."""
