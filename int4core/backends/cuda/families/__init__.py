"""The kernels as the host sees them: one module a family, and the table that numbers them."""
