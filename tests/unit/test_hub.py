"""Errors on the way from the Hugging Face hub: one message each, by kind and status."""

from __future__ import annotations

import errno
import importlib

import httpx2
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import hf_raise_for_status

from ditquant.backend import import_diffusionkit, mx
from ditquant.errors import UserError
from ditquant.models.hub import hub_message
from ditquant.models.load import load_mmdit, load_text_encoder, load_vae_decoder
from ditquant.models.spec import read_spec

REPOSITORY = "argmaxinc/mlx-stable-diffusion-3-medium"
URL = f"https://huggingface.co/{REPOSITORY}/resolve/main/sd3_medium.safetensors"


def answered(status: int, text: str = "", **headers: str) -> Exception:
    """What the hub's library raises for an answer."""
    response = httpx2.Response(
        status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        text=text,
        request=httpx2.Request("GET", URL),
    )
    with pytest.raises(errors.HfHubHTTPError) as error:
        hf_raise_for_status(response)
    return error.value


def hidden(error: Exception) -> Exception:
    """As `hf_hub_download` reports most of them: not in the cache, because of something else."""
    found = errors.LocalEntryNotFoundError("cannot find the requested files in the local cache")
    found.__cause__ = error
    return found


REQUEST = httpx2.Request("HEAD", URL)
GATED, LATER, NETWORK = "is gated: accept its licence", "Run the same command again", "the network"
CASES = [
    (answered(401, X_Error_Code="GatedRepo"), GATED),
    (answered(403, X_Error_Code="GatedRepo"), GATED),
    (answered(401), GATED),
    (answered(401, X_Error_Message="Invalid credentials in Authorization header"), GATED),
    (hidden(answered(403)), GATED),
    (answered(404, X_Error_Code="RepoNotFound"), "has no argmaxinc/mlx-stable-diffusion-3-medium"),
    (answered(404, X_Error_Code="RevisionNotFound"), "has no argmaxinc/mlx"),
    (answered(404, X_Error_Code="EntryNotFound"), "has no file sd3_medium.safetensors"),
    (answered(404), "has no file sd3_medium.safetensors"),
    (answered(429), "too many requests"),
    (answered(503, text="401 Unauthorized 403"), "answered with status 503"),
    (hidden(answered(503, text="upstream said 401")), "answered with status 503"),
    (answered(500, X_Error_Message="GatedRepo 401"), LATER),
    (answered(504), LATER),
    (hidden(errors.OfflineModeIsEnabled("offline 401")), NETWORK),
    (errors.OfflineModeIsEnabled("offline"), NETWORK),
    (errors.LocalEntryNotFoundError("nothing here"), NETWORK),
    (hidden(httpx2.ConnectError("refused", request=REQUEST)), NETWORK),
    (httpx2.ReadTimeout("403 bytes read", request=REQUEST), NETWORK),
    (hidden(httpx2.ConnectTimeout("too slow", request=REQUEST)), NETWORK),
    (ConnectionResetError(errno.ECONNRESET, "reset"), NETWORK),
    (TimeoutError("too slow"), NETWORK),
    (OSError(errno.ENOSPC, "No space left on device", "/cache/401"), "The disk is full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "The disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "/cache"), "/cache is not yours to write"),
    (OSError("Consistency check failed: file should be of size 401"), "could not be loaded"),
]


@pytest.mark.parametrize(("error", "expected"), CASES, ids=lambda value: str(value)[:30])
def test_each_kind_has_its_message(error, expected):
    message = hub_message(error, "sd3_medium.safetensors", REPOSITORY)
    assert expected in message
    others = {"is gated", "The disk is full", "cannot be reached", "answered with status"}
    told = {part for part in others if part in message}
    assert len(told) <= 1, message
    assert REPOSITORY in message


@pytest.fixture
def failing(monkeypatch):
    """Makes every request to the hub fail; gives what was asked for."""
    import_diffusionkit()
    model_io = importlib.import_module("diffusionkit.mlx.model_io")
    asked = []

    def fail_with(error):
        def refuse(repository, file, *arguments, **options):
            asked.append((repository, file))
            raise error

        monkeypatch.setattr(model_io, "hf_hub_download", refuse)
        return asked

    return fail_with


def test_every_loader_tells_what_it_asked_for(failing):
    spec = read_spec("sd3-medium")
    failing(answered(503, text="upstream said 401"))
    for load in (load_mmdit, load_vae_decoder):
        with pytest.raises(
            UserError, match=rf"status 503 for sd3_medium\.safetensors of {REPOSITORY}"
        ):
            load(spec, mx.float16)
    with pytest.raises(UserError, match=r"status 503 for clip_l/config\.json of argmaxinc/stable"):
        load_text_encoder(spec, spec.text.encoders[0], mx.float16)


def test_an_error_of_another_kind_is_told_too(failing):
    failing(RuntimeError("xet: chunk 401 is missing"))
    with pytest.raises(UserError, match="could not be loaded: xet: chunk 401 is missing"):
        load_mmdit(read_spec("sd3-medium"), mx.float16)
