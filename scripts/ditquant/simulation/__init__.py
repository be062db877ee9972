"""Activations quantized and dequantized in front of each linear, and what that shows.

fake_quantization, fake_quantization_cuda, fake_quantization_sources
                            the arithmetic, in few passes over the tensor
simulate                    a model within which it happens, by the sigma of the step
clip_search                 what shorter ranges do to what linears compute
velocity_sensitivity        what each input alone does to the velocity
"""
