"""``.composefs-async/scrub.json``: how far a check of all content has come, so that it can be continued.

Owns the file.  Losing it costs the time of a check from the beginning; it never makes a check overlook anything that
one from the beginning would not: what had findings is looked at again.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from ..._repo.state import RepoState
from .. import state_dir

__all__ = ["Position", "Scrub"]

_NAME = "scrub.json"
_LIMIT = 16 << 20
_VERSION = 1
_INTERVAL = 30.0  # seconds


@dataclass(slots=True)
class Position:
    """Streams are checked in the order of their names, then directories of objects."""

    stream: str = ""
    """The last name that is done; there is no shorter name than nothing."""
    shard: int = -1
    """The last directory that is done."""
    suspects: list[str] = field(default_factory=list[str])
    """Streams and directories of objects, as paths, that had findings."""


class Scrub:
    """Remembers the position of one check.

    Args:
        resume: begin where an earlier one ended early; otherwise that is forgotten when this one ends early, too.
    """

    def __init__(self, state: RepoState, *, resume: bool) -> None:
        self._state = state
        self.position = (_read(state) if resume else None) or Position()
        self.suspects = frozenset(self.position.suspects)
        self._saved = time.monotonic()

    def advanced(self) -> None:
        """Save the position now and then: a crash costs half a minute."""
        if time.monotonic() - self._saved > _INTERVAL:
            self.save()

    def save(self) -> None:
        """Keep the position, unless it is the beginning or the repository cannot be written."""
        if self.position == Position():
            return
        with contextlib.suppress(OSError):
            state_dir.write(self._state, _NAME, json.dumps({"version": _VERSION, **asdict(self.position)}).encode())
        self._saved = time.monotonic()

    def finished(self) -> None:
        """The next check begins at the beginning."""
        with contextlib.suppress(OSError):
            state_dir.remove(self._state, _NAME)


def _read(state: RepoState) -> Position | None:
    """None for anything that is not exactly what `Scrub.save` writes."""
    try:
        value: Any = json.loads(state_dir.read(state, _NAME, _LIMIT) or b"")
        stream, shard, suspects = value["stream"], value["shard"], value["suspects"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    typed = isinstance(stream, str) and isinstance(shard, int) and isinstance(suspects, list)
    if not typed or value.get("version") != _VERSION or not all(isinstance(each, str) for each in suspects):
        return None
    return Position(stream, shard, suspects)
