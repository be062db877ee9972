"""ditquant: post-training quantization of MM-DiT diffusion transformers on MLX.

Its folders in their order: a module imports from its own folder and from those above it in this
list. Each folder's docstring lists its modules.

    errors, artifacts, job, progress, readable, metrics
                  messages, files, logs and numbers, for everybody
    planning      what a configuration means; all that the workflow asks while it plans
    backend       platform quirks: BLAS, DiffusionKit import, device and memory
    models        what a model is, and how its parts are loaded and read prompts
    network       blocks and linears by name, the sampler, trajectories
    activations   what linears read, from that to scales by sigma, and their simulation
    weights       from stored streams to packed codes
    checkpoints   quantized models as files, and the layers that run them
    evaluation    what a variant draws, and how far that is from full precision
    plots, report what people look at

`kernels.cuda` stands beside them, for what `activations`, `weights` and `checkpoints` do in
portable code too. The embedded model's data, judge and training are a package of their own,
`demo_model`.
"""

__version__ = "0.1.0"
