"""Escapes in dump files, composefs-dump(5): bytes of any value as printable text without spaces.

Owns single fields.  Does not own what the fields mean (`dumpfile`, `dumpwriter`).
"""

from __future__ import annotations

import re
from binascii import unhexlify

__all__ = ["escape", "escape_pair_part", "optional", "unescape"]

# Backslash and everything that is not printable ASCII.
_to_escape = re.compile(rb"[^!-\[\]-~]")
_to_escape_in_pair = re.compile(rb"[^!-<>-\[\]-~]")
_escaped = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
_named = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_escapes = {bytes([value]): b"\\x%02x" % value for value in range(256)} | {
    value: b"\\" + name for name, value in _named.items()
}


def escape(field: bytes) -> bytes:
    """*field* as `unescape` understands it.  A lone ``-``, which would mean that there is nothing, is escaped too."""
    if field == b"-":
        return b"\\x2d"
    return _to_escape.sub(_replace, field)


def escape_pair_part(part: bytes) -> bytes:
    """Escape the name or the value of an attribute: ``=`` too, but not a lone ``-``."""
    return _to_escape_in_pair.sub(_replace, part)


def optional(field: bytes | None) -> bytes:
    """*field* escaped, or ``-`` if there is nothing or nothing in it."""
    return escape(field) if field else b"-"


def unescape(field: bytes) -> bytes:
    """The bytes that *field* stands for.

    Raises:
        ValueError: a backslash stands before anything but a backslash, ``n``, ``r``, ``t`` or ``x`` with two digits.
    """
    return _escaped.sub(_restore, field) if b"\\" in field else field


def _replace(match: re.Match[bytes]) -> bytes:
    return _escapes[match[0]]


def _restore(match: re.Match[bytes]) -> bytes:
    if match[1] is not None:
        return unhexlify(match[1])
    try:
        return _named[match[2]]
    except KeyError:
        raise ValueError(f"invalid escape {match[0].decode('ascii', 'backslashreplace')}") from None
