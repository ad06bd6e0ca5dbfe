"""``Warning: 299``: what a registry wants people to read (OCI distribution specification, "Warnings"); no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["parse_warnings"]

_WARNING = re.compile(r"""\s*299\s+-\s+"((?:[^"\\]|\\.)*)\"""")
_LIMIT = 4096


def parse_warnings(lines: Iterable[str]) -> list[str]:
    """The texts, printable and each once; of all lines together at most 4096 characters are looked at."""
    found: dict[str, None] = {}
    room = _LIMIT
    for line in lines:
        if match := _WARNING.match(line[:room]):
            text = re.sub(r"\\(.)", r"\1", match[1])
            text = "".join(char for char in text if char.isprintable()).strip()
            if text:
                found[text] = None
        room = max(0, room - len(line))
    return list(found)
