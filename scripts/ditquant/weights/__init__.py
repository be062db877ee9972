"""The weight track: from a block's stored inputs and outputs to its packed codes.

grids, rounding
                            codes and their values; the soft rounding of AdaRound
roundings, gptq, adaround, lsq, other_linears
                            how codes are chosen
balance, balance_search, rotation
                            changes of the channels before rounding
block_io, prefix, block_files, layer_inputs
                            inputs and outputs of a block's job
quantize_block, reconstruct, block_gradients
                            one block by a recipe, and what that does to its output
learning, loss_scale, divergence
                            learning by Adam: its loop, its state, float16, and when it goes astray
tuning, tuned_grids, velocity_rows
                            scales and biases of all blocks, together
"""
