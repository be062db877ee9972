"""The embedded demo model: captioned shapes, a judge that looks at pictures, and the training.

Apart from the library, which never imports it; of users' jobs only the evaluation does, for the
judge.

A quantizer needs a model to be shown on, and the real ones are gated and large. This one is small
enough to ship (13.8 M parameters), has the architecture of Stable Diffusion 3 to the last tensor
name, and draws a world in which a program can decide whether the picture fits the caption:

    shapes      the world: captions, what they mean, and how they are drawn
    prompts     the captions for calibration and evaluation, disjoint by construction
    vocabulary  a byte-pair vocabulary in CLIP's file form, one token a word
    judge       does this picture show what the caption says? (with matching)
    network     the configurations of the networks
    forward     their forward passes in training, laid out for speed
    optimizer   AdamW and the moving average on one flat vector
    training    the losses, and a training run that stops and resumes without a trace
    data        training pictures in shards, and their latents
    export      a trained model as the files under resources/demo

`shapes` and `judge` need numpy and Pillow only.
"""
