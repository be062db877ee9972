"""The activation track: statistics of the linears' inputs, scales by sigma, and their simulation.

histogram, input_statistics, observe, measuring, summary
                            statistics of the inputs, measured along trajectories, merged exactly
scheme, granularity         how activations are quantized, and how their scales follow sigma
intervals, channel_ranges, learned_ranges, clip_errors
                            the ends and the middle of a range
segments, polynomials       groups of sigma, and polynomials in sigma
fit                         a scheme fitted to statistics
tiers, velocity_errors, budget
                            4, 6 or 8 bits by threshold or by error
configs, quant_config, quant_params, sigma_lookup
                            the configuration of a scheme, its file, and what that says at any sigma
fake_quantization, simulate activations quantized and dequantized in front of each linear
clip_search, velocity_sensitivity
                            what shorter ranges do to what linears compute, and what each input
                            alone does to the velocity
"""
