"""ditquant: post-training quantization of MM-DiT diffusion transformers on MLX.

The rooms of this library, lowest floor first (an import only ever goes down):

    errors, settings, validation, digest, job, progress
                  around the work: messages, what a configuration means, logs
    backend       platform quirks: BLAS, DiffusionKit import, device and memory
    artifacts     atomic files, JSON with a format name, checked tensors
    models        what a model is, and how its parts are loaded and read prompts
    blocks        names of blocks and linears, taps, modulation
    sampling      sigma schedule, Euler loop, classifier-free guidance
    calibration   conditioning and trajectories, as files hold them

    block_io      the streams between blocks            histogram, activation_statistics
    grids         codes, scales, packing                               mergeable statistics
    rounding      RTN, AdaRound's relaxation            observe        measuring an image
    reconstruct   the error of a block                  segments, polynomials, intervals,
                                                        ranges, tiers, budget,
                                                        sensitivity    configurations
    adaround      learning the rounding                 activation_*   summary and plots
    recipes       a recipe on a block                   quant_config, simulate
                                                                       fake quantization
    other_linears what is quantized outside attention and MLP
    quantized     layers that run on packed weights
    checkpoint    the native checkpoint
    exports       files for stock DiffusionKit

    variants      a model as a variant's name says      trajectories   what it does on captions
    metrics, comparison, evaluation                     numbers and pictures from it
    report*, headlines, charts, readable                the page

`demo` stands beside them: the embedded model's data, judge and training. `layout` names tensors as
the original SD3 file does.
"""

__version__ = "0.1.0"
