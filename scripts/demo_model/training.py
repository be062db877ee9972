"""The losses of the demo model, and a training run that stops and resumes without a trace.

Two runs: the VAE on pictures, then the MM-DiT with its text encoder on the VAE's latents. What a
step draws depends on the seed and the number of the step alone, so a run that was stopped and
resumed ends with the same bits as an undisturbed one (where the device computes reproducibly).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlx.utils import tree_unflatten

from ditquant.backend import mx, nn

from . import forward
from .network import LATENT_SCALE, LATENT_SHIFT, Config, Networks, parameters
from .optimizer import Layout, Schedule, State, update

Params = dict[str, mx.array]
Loss = Callable[[Params, Any], mx.array]

KL_WEIGHT = 3e-4  # keeps the latents' noise near unit variance where that costs no detail
FORMAT_WEIGHT = 0.1  # keeps mean and spread of the latents at SD3's, which samplers assume
CAPTION_DROPOUT = 0.1  # pictures trained without a caption, for classifier-free guidance
SIGMA_SHIFT = 2.0  # noise levels of training lean to the noisy side, where shapes are decided
REPORT_EVERY = 250  # steps


@dataclass(frozen=True)
class Settings:
    """How one network is trained.

    Attributes:
        steps: length of the learning rate's schedule.
        stop_at: step at which the run ends early; None: at the end of the schedule.
        batch_size: pictures a step.
        learning_rate, warmup: see `optimizer.Schedule`.
        weight_decay: decoupled weight decay.
        ema: decay of the moving average of the weights, which is the result.
        seed: of the initial weights and of every draw.
        checkpoint_every: steps between checkpoints.
        half_precision: compute in bfloat16; parameters stay float32.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    weight_decay: float
    ema: float
    seed: int
    checkpoint_every: int
    half_precision: bool
    stop_at: int | None = None

    @property
    def identity(self) -> str:
        """What two runs must share for one to go on from the other's checkpoint."""
        told = {**asdict(self), "stop_at": None, "checkpoint_every": None}
        return json.dumps(told, sort_keys=True)

    @property
    def dtype(self) -> mx.Dtype:
        return mx.bfloat16 if self.half_precision else mx.float32


def layout_of(params: Params) -> Layout:
    """The flat layout of parameters in their own order."""
    return Layout({name: value.shape for name, value in params.items()})


def step_key(seed: int, step: int) -> mx.array:
    """The random key of one step: of the seed and the step, not of what ran before."""
    return mx.random.key((seed << 32) + step)


def fit(
    loss: Loss,
    params: Params,
    draw: Callable[[int], Any],
    settings: Settings,
    checkpoint: Path,
    report: Callable[[int, float], None],
) -> State:
    """Trains to the end of the settings, from the checkpoint if there is one.

    Args:
        loss: scalar loss of (parameters in the compute dtype, batch).
        params: initial parameters, float32.
        draw: the batch of a step.
        settings: steps, rates and seeds.
        checkpoint: file of the run's state, written every `checkpoint_every` steps and at the end;
            one that other settings left there is ignored.
        report: called with the step and the mean loss every `REPORT_EVERY` steps.
    """
    layout = layout_of(params)
    state = State.load(checkpoint, settings.identity)
    if state is None:
        state = State.start(layout.flatten(params).astype(mx.float32))
    schedule = Schedule(settings.learning_rate, settings.warmup, settings.steps)
    gradients = mx.value_and_grad(loss)
    end = settings.steps if settings.stop_at is None else settings.stop_at
    total, since = mx.array(0.0), state.step
    while state.step < end:
        before = total
        seen = layout.unflatten(state.weights.astype(settings.dtype))
        value, slopes = gradients(seen, draw(state.step))
        rate = schedule(state.step)
        state = update(state, layout.flatten(slopes), rate, settings.weight_decay, settings.ema)
        total = total + value
        mx.async_eval(total, *state.arrays.values())
        mx.eval(before)  # the host prepares one step ahead of the device, no more
        if state.step % REPORT_EVERY == 0 or state.step == end:
            mean = total.item() / (state.step - since)
            state = replace(state, losses=(*state.losses, (state.step, mean)))
            report(state.step, mean)
            total, since = mx.array(0.0), state.step
        if state.step % settings.checkpoint_every == 0 or state.step == end:
            state.save(checkpoint, settings.identity)
    return state


class _RowLinear(nn.Module):
    """A linear layer that computes in two dimensions, whatever its input has (see `forward`)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def __call__(self, x: mx.array) -> mx.array:
        rows = mx.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight.T)
        return rows.reshape(*x.shape[:-1], -1)


def with_row_linears(module: nn.Module) -> nn.Module:
    """Swaps the linear layers of a DiffusionKit module for ones that compute in two dimensions."""
    swapped = [
        (path, _RowLinear(part)) for path, part in module.named_modules() if type(part) is nn.Linear
    ]
    module.update_modules(tree_unflatten(swapped))
    return module


def decode(decoder: nn.Module, latents: mx.array) -> mx.array:
    """DiffusionKit's `VAEDecoder.__call__` without its evaluation after every block."""
    x = decoder.conv_in(latents)
    for block in decoder.mid_blocks:
        x = block(x)
    for block in reversed(decoder.up_blocks):
        x = block(x)
    return decoder.conv_out(nn.silu(decoder.conv_norm_out(x)))


def to_unit(pictures: mx.array) -> mx.array:
    """uint8 pictures as float32 in -1..1, the VAE's range."""
    return pictures.astype(mx.float32) / 127.5 - 1


def vae_loss(networks: Networks) -> Loss:
    """L1 + L2 of the reconstruction, and what keeps the latents in SD3's format.

    Batch: (pictures uint8 (b, 128, 128, 3), noise float32 (b, 16, 16, 16)).
    """
    encoder, decoder = with_row_linears(networks.encoder), with_row_linears(networks.decoder)

    def loss(params: Params, batch: tuple[mx.array, mx.array]) -> mx.array:
        halves = split_parameters(params)
        encoder.load_weights(list(halves["encoder"].items()))
        decoder.load_weights(list(halves["decoder"].items()))
        dtype = params["encoder.conv_in.weight"].dtype
        pictures, noise = batch
        target = to_unit(pictures)
        mean, log_variance = encoder(target.astype(dtype)).astype(mx.float32).split(2, axis=-1)
        log_variance = mx.clip(log_variance, -12.0, 2.0)
        sample = mean + mx.exp(0.5 * log_variance) * noise
        error = decode(decoder, sample.astype(dtype)).astype(mx.float32) - target
        center = mean.mean(axis=(0, 1, 2)) - LATENT_SHIFT
        spread = mx.sqrt(mean.var(axis=(0, 1, 2)) + 1e-6) - 1 / LATENT_SCALE
        form = (center**2).mean() + (spread**2).mean()
        divergence = (mx.exp(log_variance) - log_variance - 1).mean()
        rebuilt = mx.abs(error).mean() + (error**2).mean()
        return rebuilt + FORMAT_WEIGHT * form + KL_WEIGHT * divergence

    return loss


def draw_pictures(pictures: mx.array, settings: Settings) -> Callable[[int], Any]:
    """Batches for `vae_loss` from all pictures, uint8 (n, 128, 128, 3)."""

    def draw(step: int) -> tuple[mx.array, mx.array]:
        which, noise = mx.random.split(step_key(settings.seed, step))
        chosen = mx.random.randint(0, len(pictures), (settings.batch_size,), key=which)
        return pictures[chosen], mx.random.normal((settings.batch_size, 16, 16, 16), key=noise)

    return draw


def flow_loss(config: Config) -> Loss:
    """Rectified flow (arXiv 2209.03003): the velocity from picture to noise, in patches.

    x_sigma = (1 - sigma) * latents + sigma * noise; the target is noise - latents.
    Batch: (latents, noise: (b, tokens, 64); sigma: (b,); token ids: (b, length)).
    """
    heads, text_heads = config["mmdit"]["num_heads"], config["text"]["num_heads"]

    def loss(params: Params, batch: tuple[mx.array, ...]) -> mx.array:
        parts = split_parameters(params)
        latents, noise, sigma, tokens = batch
        level = sigma[:, None, None]
        dtype = params["text.token_embedding.weight"].dtype
        mixed = ((1 - level) * latents + level * noise).astype(dtype)
        context, pooled = forward.encode_text(parts["text"], text_heads, tokens)
        predicted = forward.velocity(parts["mmdit"], heads, mixed, sigma, context, pooled)
        return ((predicted.astype(mx.float32) - (noise - latents)) ** 2).mean()

    return loss


def joined(**parts: nn.Module) -> Params:
    """The parameters of several networks, each under its own name: `joined(mmdit=...)`."""
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in parameters(module).items()
    }


def split_parameters(params: Mapping[str, mx.array]) -> dict[str, Params]:
    """The reverse of `joined`: part to its own parameters."""
    parts: dict[str, Params] = {}
    for name, value in params.items():
        part, _, path = name.partition(".")
        parts.setdefault(part, {})[path] = value
    return parts


def draw_latents(
    latents: mx.array, tokens: mx.array, empty: mx.array, settings: Settings
) -> Callable[[int], Any]:
    """Batches for `flow_loss`.

    Args:
        latents: of all pictures, in patches, normalised to SD3's format: (n, tokens, 64).
        tokens: ids of their captions, (n, length).
        empty: ids of the empty caption, (length,).
        settings: seed and batch size.

    sigma is the logistic of a normal draw (arXiv 2403.03206, section 3.1), shifted.
    """
    size = settings.batch_size

    def draw(step: int) -> tuple[mx.array, ...]:
        keys = mx.random.split(step_key(settings.seed, step), 4)
        chosen = mx.random.randint(0, len(latents), (size,), key=keys[0])
        picture = latents[chosen].astype(mx.float32)
        noise = mx.random.normal(picture.shape, key=keys[1])
        sigma = mx.sigmoid(mx.random.normal((size,), key=keys[2]))
        sigma = SIGMA_SHIFT * sigma / (1 + (SIGMA_SHIFT - 1) * sigma)
        silent = mx.random.uniform(shape=(size, 1), key=keys[3]) < CAPTION_DROPOUT
        return picture, noise, sigma, mx.where(silent, empty, tokens[chosen])

    return draw
