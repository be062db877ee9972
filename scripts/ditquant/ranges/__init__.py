"""From statistics to activation configurations: bits, scales and shifts by sigma.

intervals, channel_ranges, learned_ranges, clip_errors
                            where a range ends, and its middle
segments, polynomials       how ranges follow sigma
single_tier                 one number of bits for all layers
tiers, sensitivity, velocity_errors, budget
                            4, 6 or 8 bits by threshold or by error
configs                     a configuration as the workflow asks for it
quant_config                its file
sigma_lookup                what it says at any sigma
summary                     the statistics as people read them
"""
