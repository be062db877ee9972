"""Kernels of our own, for what MLX's are slow at: `cuda`."""
