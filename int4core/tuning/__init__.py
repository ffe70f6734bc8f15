"""Which kernel each layer uses: candidates, timing, choosing, and the files that keep the choice."""
