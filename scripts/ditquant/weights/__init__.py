"""The weight track: from a block's stored inputs and outputs to its packed codes.

grids, rounding, rounding_kernels
                            codes and their values; the soft rounding of AdaRound
gptq, awq, adaround, lsq, joint_steps, roundings, other_linears
                            how codes are chosen
balance, balance_factors, balance_search, block_balance, rotation
                            what is done to channels before
block_io, prefix, block_files, layer_inputs
                            what a block's job reads and writes
reconstruct, block_gradients, loss_scale, divergence, learning_state, learning,
recipes
                            learning on a block, by a recipe
velocity_rows, tuned_grids, tuner, tuning
                            scales and biases of all blocks, together
"""
