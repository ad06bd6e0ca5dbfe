"""Paths of entries of a layer, as a tar has them: the names in one, and how it is shown."""

from __future__ import annotations

from typing import Final

__all__ = ["EMPTY_NAMES", "names_of", "shown"]

EMPTY_NAMES: Final = frozenset((b"", b"."))
"""Components that mean nothing."""
_SHOWN: Final = 200
"""Bytes of a path in a message."""


def names_of(path: bytes) -> list[bytes]:
    """The names in *path*, each ``..`` taking away the one before it, if there is one."""
    names = [name for name in path.split(b"/") if name not in EMPTY_NAMES]
    if b".." not in names:
        return names
    left: list[bytes] = []
    for name in names:
        if name != b"..":
            left.append(name)
        elif left:
            left.pop()
    return left


def shown(path: bytes) -> str:
    """A path for messages, cut if it is long."""
    text = path[:_SHOWN].decode("utf-8", "backslashreplace")
    return repr(text) + ("…" if len(path) > _SHOWN else "")
