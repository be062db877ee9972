"""ditquant: post-training quantization of MM-DiT diffusion transformers on MLX.

The rooms of this library, lowest floor first (an import only ever goes down):

    backend      platform quirks: BLAS, DiffusionKit import, device and memory
    artifacts    atomic files, JSON with a format name, checksums
    models       what a model is, and how its three parts are loaded
    blocks       names of blocks and linears, taps, a block as a pure function
    sampling     sigma schedule, Euler loop, classifier-free guidance
    grids        integer grids, codes, packing
    rounding     which code a weight gets: RTN, and the AdaRound relaxation
    reconstruct  optimisation of one block against its full-precision output
    observe      mergeable activation statistics
    ranges       quantization configurations from statistics
    quantized    layers and checkpoints that run quantized
    metrics, plots, report

`demo` stands beside them: the embedded model's data, judge and training.
"""

__version__ = "0.1.0"
