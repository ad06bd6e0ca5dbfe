"""``Link``: where the next page of a listing is (RFC 8288); no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import urljoin, urlsplit

__all__ = ["next_page"]

_TARGET = re.compile(r"\s*<([^>]*)>")
_PARAMETER = re.compile(r"""\s*;\s*([^\s=;,]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?""")
_LIMIT = 16 << 10


def next_page(lines: Iterable[str], base: str) -> str | None:
    """Path and query of the link with the relation ``next``; None if there is none.

    Only path and query are believed: the page is asked of the same registry.

    Args:
        base: path of the request that was answered, which relative links start from.

    Raises:
        ValueError: it leads out of ``/v2/``.
    """
    for line in lines:
        for target, relations in _links(line[:_LIMIT]):
            if "next" in relations:
                parts = urlsplit(urljoin(base, target))
                if not parts.path.startswith("/v2/") or "/../" in parts.path or not parts.path.isascii():
                    raise ValueError(f"the link to the next page leads to {parts.path[:160]!r}")
                return f"{parts.path}?{parts.query}" if parts.query else parts.path
    return None


def _links(line: str) -> Iterator[tuple[str, frozenset[str]]]:
    at = 0
    while found := _TARGET.match(line, at):
        target, at = found[1], found.end()
        relations: frozenset[str] | None = None
        while parameter := _PARAMETER.match(line, at):
            at = parameter.end()
            if parameter[1].lower() == "rel" and relations is None:
                value = parameter[2] if parameter[2] is not None else parameter[3] or ""
                relations = frozenset(value.lower().split())
        yield target, relations or frozenset()
        comma = line.find(",", at)
        if comma < 0:
            return
        at = comma + 1
