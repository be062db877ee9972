"""CUDA kernels, each with the portable code that it must equal.

measuring, measuring_sources                    `activations.measuring`
fake_quantization, fake_quantization_sources    `activations.fake_quantization.PortableQuantizer`
rotation                                        `weights.rotation.rotated`
unpacking                                       `mx.dequantize`
launching                                       what they share
"""
