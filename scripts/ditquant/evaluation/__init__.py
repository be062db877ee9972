"""What a variant draws, and how far that is from full precision.

variants                    opens a model as a variant's name says
trajectories, block_errors  what it does on captions, and block by block
pictures, comparison        pictures, alone and side by side
table                       numbers by caption and variant, and the table
"""
