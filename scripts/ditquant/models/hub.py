"""What went wrong between here and the Hugging Face hub, by the kind of the error.

The text of an error decides nothing: a server that is overloaded may quote any number.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCAL = "or set model.checkpoint to a local file"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from; the hub's library hides the first behind others."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(chain: list[BaseException]) -> int | None:
    """Status code of the answer that an error tells of."""
    for error in chain:
        response: Any = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def hub_message(error: BaseException, file: str, repository: str) -> str:
    """One message for the user: what failed, and what to do.

    Args:
        error: whatever `hf_hub_download` has raised.
        file: that was asked for.
        repository: where, "argmaxinc/stable-diffusion".
    """
    from huggingface_hub import constants, errors

    chain = list(_chain(error))
    status = _status(chain)
    what = f"{file} of {repository}"
    for one in chain:
        if isinstance(one, OSError) and one.errno in _FULL:
            return (
                f"The disk is full: {what} could not be downloaded to {constants.HF_HUB_CACHE}. "
                "Free some space, or set HF_HOME to a folder on another disk, and run the same "
                "command again."
            )
        if isinstance(one, PermissionError):
            return (
                f"{what} could not be stored: {one.filename or constants.HF_HUB_CACHE} is not "
                "yours to write. Correct its permissions, or set HF_HOME to another folder."
            )
    if any(isinstance(one, errors.GatedRepoError) for one in chain) or status in (401, 403):
        return (
            f"{repository} is gated: accept its licence on its Hugging Face page, log in with "
            f"`hf auth login` (or set HF_TOKEN), and run the same command again; {_LOCAL}."
        )
    gone = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.DisabledRepoError)
    if any(isinstance(one, gone) for one in chain):
        return (
            f"The Hugging Face hub has no {repository} for you. Check HF_ENDPOINT and HF_TOKEN, "
            f"{_LOCAL}."
        )
    if any(isinstance(one, errors.RemoteEntryNotFoundError) for one in chain) or status == 404:
        return f"The Hugging Face hub has no file {what}. Check HF_ENDPOINT, {_LOCAL}."
    if status == 429:
        return f"The Hugging Face hub has had too many requests ({what}): wait, and run it again."
    if status is not None:
        return (
            f"The Hugging Face hub answered with status {status} for {what}. Run the same command "
            f"again later, {_LOCAL}."
        )
    unreachable = (errors.HTTPError, errors.EntryNotFoundError, ConnectionError, TimeoutError)
    if any(isinstance(one, unreachable) for one in chain):
        return (
            f"{what} is not in the local cache, and the Hugging Face hub cannot be reached. Check "
            f"the network and HF_HUB_OFFLINE, {_LOCAL}."
        )
    return f"{what} could not be loaded: {error}"
