"""ditquant: post-training quantization of MM-DiT diffusion transformers on MLX.

The folders, in order: a module imports from its own folder and from those above it in this list.
The docstring of each folder lists its modules.

    errors, artifacts, job, progress, readable, metrics
                  messages, files, logs and numbers, used everywhere
    planning      what a configuration means; everything that Snakemake needs to plan
    backend       the platform: MLX, BLAS, the import of DiffusionKit, device and memory
    models        descriptions of models; loading of their parts; text encoders
    network       the transformer as the tracks see it; the sampler; trajectories
    activations   the activation track: statistics, ranges, scales by sigma, simulation
    weights       the weight track: block inputs and outputs, roundings, learning, tuning
    checkpoints   quantized models as files, and the layers that run them
    evaluation    pictures and errors of a variant
    plots, report what people look at

`kernels.cuda` has CUDA kernels for operations of `activations`, `weights` and `checkpoints`, which
also have portable code. The demo model's data, judge and training are in the package `demo_model`.
"""

__version__ = "0.1.0"
