"""Pictures and errors of a variant.

variants                    opens the model that a variant's name describes
trajectories, block_errors  errors of latents and velocities, and of each block
pictures, comparison        pictures, and side-by-side comparisons
table                       numbers by caption and variant, and the table
"""
