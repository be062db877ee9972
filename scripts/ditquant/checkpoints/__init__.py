"""Quantized models as files, and the layers that run them.

quantized, packed_blocks    layers with packed weights
checkpoint                  the native checkpoint
exports, exported_ranges    files for stock DiffusionKit, and ranges for kernels to come
measured_model              the model whose activations are measured
"""
