"""What the environment says about where other programs keep their images."""

from __future__ import annotations

import os

__all__ = ["variable"]


def variable(name: str) -> str | None:
    """A variable of the environment; None if it is not set, or empty."""
    return os.environ.get(name) or None
