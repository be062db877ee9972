"""What all tests share."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real runs come first: where several processes test, the short files fill up the end."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)
