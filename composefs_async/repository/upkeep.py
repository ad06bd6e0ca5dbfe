"""Keeping a repository healthy: garbage collection, checking, repair, usage."""

from __future__ import annotations

from .base import OpenRepository

__all__ = ["UpkeepOperations"]


class UpkeepOperations(OpenRepository):
    """What is done to the repository as a whole."""
