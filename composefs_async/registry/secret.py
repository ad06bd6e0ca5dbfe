"""Text that must not be seen: passwords and tokens.

Owns how they are carried.  Whoever sends one calls `reveal` at the last moment.
"""

from __future__ import annotations

import hmac

__all__ = ["Secret"]


class Secret:
    """A string whose `repr` and `str` are ``***``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"
