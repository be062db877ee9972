"""Kernels for operations that MLX's own kernels compute slowly: `cuda`."""
