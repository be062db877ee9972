"""Tests that need root, and what another user sees."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def another_user(test: Callable) -> Callable:
    """Marks a test that forks to become another user."""
    warning = "ignore:.*multi-threaded:DeprecationWarning"
    return needs_root(pytest.mark.filterwarnings(warning)(test))


def as_nobody(function: Callable[[], object]) -> str:
    """What a function returns in a process of another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        return file.read().decode()
