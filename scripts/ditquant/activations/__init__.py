"""The activation track: from what linears read to scales by sigma, and what those do.

histogram, input_statistics, observe, measuring, summary
                            what linears read, measured along trajectories and added up exactly
scheme, granularity         how activations are to be quantized, and how scales follow sigma
intervals, channel_ranges, learned_ranges, clip_errors
                            where a range ends, and its middle
segments, polynomials       how ranges follow sigma, for the granularities
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
