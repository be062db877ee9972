"""What linears read, measured along trajectories and added up exactly.

histogram                   bins that any two histograms share
input_statistics            what is kept of each input, and how images merge
observe                     measures one image
measuring                   the measurement in the forward pass's graph; `measuring_cuda` and
                            `measuring_sources` for CUDA
"""
