"""Keeping a repository healthy: garbage collection, checking, repair, usage."""

from __future__ import annotations

from .._aio.hops import hop
from .._upkeep import usage as _usage
from ..results import Usage
from .base import OpenRepository

__all__ = ["UpkeepOperations"]


class UpkeepOperations(OpenRepository):
    """What is done to the repository as a whole."""

    # -- usage ---------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """What each reference keeps, alone or with others, and what removing it would free; all objects, garbage.

        Reads every stream and image that has a reference and looks at each object's size, about 5 µs an object.

        Raises:
            ReachUnknownError: something is damaged, so that it cannot be told what is needed.
        """
        return _usage.usage(self._state)

    async def usage_async(self) -> Usage:
        return await hop(self.usage)
