"""What answers of registries mean: errors, rate limits; no I/O."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import ComposefsError, ImageNotFoundError, RegistryError

__all__ = ["ERROR_LIMIT", "RateStatus", "Said", "error_of", "is_denied", "parse_error", "parse_rate_limit"]

ERROR_LIMIT = 64 << 10
"""Bytes of an answer with an error that are read."""
_QUOTED = 300
_NOT_FOUND = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND"})
_DENIED = frozenset({"DENIED", "UNAUTHORIZED"})
_LIMIT = re.compile(r"\s*(\d{1,12})\s*(?:;\s*w\s*=\s*(\d{1,12}))?")


@dataclass(frozen=True, slots=True)
class Said:
    """What the body of an error says."""

    code: str = ""
    message: str = ""
    """Printable and short."""


def parse_error(body: bytes | None) -> Said:
    """The first error of a body; any text if it has not the form of the specification."""
    if not body:
        return Said()
    try:
        first: Any = json.loads(body)["errors"][0]
        code, message = first.get("code") or "", first.get("message") or ""
        detail = first.get("detail")
        if not message and isinstance(detail, str):
            message = detail
        if isinstance(code, str) and isinstance(message, str):
            return Said(_printable(code)[:64], _printable(message))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        pass
    return Said(message=_printable(body[: 4 * _QUOTED].decode(errors="replace")))


def _printable(text: str) -> str:
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def is_denied(status: int, said: Said) -> bool:
    """Whether it is about access."""
    return status in (401, 403) or (said.code in _DENIED and 400 <= status < 500 and status != 404)


def error_of(what: str, host: str, status: int, said: Said) -> ComposefsError:
    """The error for an answer that is not about access."""
    unknown = said.code in _NOT_FOUND or (said.code == "UNKNOWN" and "not found" in said.message.lower())
    if status == 404 or (unknown and 400 <= status < 500):
        detail = ": ".join(filter(None, (said.code, said.message)))
        return ImageNotFoundError(what, reason=f"{host} has no such thing{f' ({detail})' if detail else ''}")
    return RegistryError(what, status, said.code, host=host, message=said.message)


@dataclass(frozen=True, slots=True)
class RateStatus:
    """How often one may ask."""

    limit: int | None
    remaining: int | None
    window: int | None
    """Seconds."""
    source: str = ""
    """What is counted: an account, or an address."""

    def __str__(self) -> str:
        of = "" if self.limit is None else f" of {self.limit}"
        window = "" if self.window is None else f" in {self.window} s"
        counted = f", counted for {self.source}" if self.source else ""
        left = "unknown" if self.remaining is None else str(self.remaining)
        return f"{left}{of} requests left{window}{counted}"


def parse_rate_limit(limit: str | None, remaining: str | None, source: str | None) -> RateStatus | None:
    """What ``ratelimit-limit``, ``ratelimit-remaining`` and ``docker-ratelimit-source`` say; None for nothing."""
    most, left = (_LIMIT.match(text) if text else None for text in (limit, remaining))
    if most is None and left is None:
        return None
    window = next((int(found[2]) for found in (most, left) if found and found[2]), None)
    return RateStatus(int(most[1]) if most else None, int(left[1]) if left else None, window, _printable(source or ""))
