"""Bracket expressions of regular expressions, ``[…]``, as sets of bytes.

Owns the two grammars that a policy may be written in: that of Rust's regex crate, where brackets nest and ``&&``,
``--`` and ``~~`` combine sets, and that of PCRE2, where a ``[`` inside is itself.  Does not own what is outside of
brackets (`regex`).

A set is an integer with bit *n* for byte *n*.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

__all__ = ["ANY", "CLASSES", "POSIX", "BracketError", "both_cases", "parse_bracket", "pattern_of", "single"]

ANY: Final = (1 << 256) - 1


class BracketError(Exception):
    """What is wrong with a regular expression; the message says it."""


def _span(first: int, last: int) -> int:
    return (1 << last + 1) - (1 << first)


def single(byte: int) -> int:
    """The set of one byte."""
    return 1 << byte


def _of(text: bytes) -> int:
    found = 0
    for byte in text:
        found |= 1 << byte
    return found


_DIGIT: Final = _span(0x30, 0x39)
_LOWER: Final = _span(0x61, 0x7A)
_UPPER: Final = _span(0x41, 0x5A)
_SPACE: Final = _of(b"\t\n\v\f\r ")
_WORD: Final = _DIGIT | _LOWER | _UPPER | _of(b"_")

CLASSES: Final = {
    ord("d"): _DIGIT,
    ord("D"): ANY & ~_DIGIT,
    ord("s"): _SPACE,
    ord("S"): ANY & ~_SPACE,
    ord("w"): _WORD,
    ord("W"): ANY & ~_WORD,
}
"""Of the escapes ``\\d`` and so on, in ASCII."""

_GRAPH: Final = _span(0x21, 0x7E)

POSIX: Final = {
    b"alnum": _DIGIT | _LOWER | _UPPER,
    b"alpha": _LOWER | _UPPER,
    b"ascii": _span(0, 0x7F),
    b"blank": _of(b"\t "),
    b"cntrl": _span(0, 0x1F) | single(0x7F),
    b"digit": _DIGIT,
    b"graph": _GRAPH,
    b"lower": _LOWER,
    b"print": _GRAPH | single(0x20),
    b"punct": _GRAPH & ~(_DIGIT | _LOWER | _UPPER),
    b"space": _SPACE,
    b"upper": _UPPER,
    b"word": _WORD,
    b"xdigit": _DIGIT | _span(0x41, 0x46) | _span(0x61, 0x66),
}
"""Of ``[:alpha:]`` and so on, in ASCII."""


def both_cases(members: int) -> int:
    """*members*, and each letter among them in the other case."""
    return members | (members & _UPPER) << 32 | (members & _LOWER) >> 32


@lru_cache(maxsize=1024)
def pattern_of(members: int) -> bytes:
    """The set as a bracket expression that `re` and RE2 understand alike."""
    if members == ANY:
        return b"(?s:.)"
    if not members:
        return rb"[^\x00-\xff]"
    pieces = []
    byte = 0
    while byte < 256:
        if members >> byte & 1:
            first = byte
            while byte < 255 and members >> byte + 1 & 1:
                byte += 1
            pieces.append(b"\\x%02x" % first if first == byte else b"\\x%02x-\\x%02x" % (first, byte))
        byte += 1
    return b"[%b]" % b"".join(pieces)


Escape = Callable[[int], tuple[int, int]]
"""Takes the place of a backslash; gives the set, and the place after the escape.  Raises BracketError."""


def parse_bracket(pattern: bytes, start: int, escape: Escape, *, rust: bool) -> tuple[int, int]:
    """The set of the expression that begins at *start*, a ``[``, and the place after it.

    Raises:
        BracketError: it is malformed in the grammar that *rust* says.
    """
    return _Rust(pattern, escape).parse(start) if rust else _pcre(pattern, start, escape)


def _posix(pattern: bytes, at: int) -> tuple[int, int] | None:
    """The class ``[:name:]`` that begins at *at*, if there is one."""
    end = pattern.find(b":]", at + 2)
    if pattern[at : at + 2] != b"[:" or end < 0:
        return None
    name = pattern[at + 2 : end]
    negated = name.startswith(b"^")
    members = POSIX.get(name.removeprefix(b"^"))
    if members is None:
        return None
    return (ANY & ~members if negated else members), end + 2


def _range(first: int, last: int) -> int:
    """The members from the only one of *first* to that of *last*."""
    if first.bit_count() != 1 or last.bit_count() != 1:
        raise BracketError("a range that begins or ends with a class")
    if last < first:
        raise BracketError("a range that ends before it begins")
    return (last << 1) - first


def _pcre(pattern: bytes, start: int, escape: Escape) -> tuple[int, int]:
    at, members = start + 1, 0
    negated = pattern[at : at + 1] == b"^"
    at += negated
    first = True
    while at < len(pattern):
        if pattern[at] == 0x5D and not first:
            return (ANY & ~members if negated else members), at + 1
        first = False
        known = _posix(pattern, at)
        if known is not None:
            item, at = known
            members |= item
            continue
        item, at = _pcre_item(pattern, at, escape)
        if pattern[at : at + 1] == b"-" and pattern[at + 1 : at + 2] not in (b"]", b""):
            last, after = _pcre_item(pattern, at + 1, escape)
            if item.bit_count() == 1 and last.bit_count() == 1:
                item, at = _range(item, last), after
            else:  # "\d-x" has the hyphen itself
                item, at = item | single(0x2D), at + 1
        members |= item
    raise BracketError("'[' without its ']'")


def _pcre_item(pattern: bytes, at: int, escape: Escape) -> tuple[int, int]:
    return escape(at) if pattern[at] == 0x5C else (single(pattern[at]), at + 1)


_NESTED_MAX: Final = 100


class _Rust:
    """The grammar of the regex crate; recursion is bounded."""

    def __init__(self, pattern: bytes, escape: Escape) -> None:
        self._pattern, self._escape, self._depth = pattern, escape, 0

    def parse(self, start: int) -> tuple[int, int]:
        self._depth += 1
        if self._depth > _NESTED_MAX:
            raise BracketError("brackets are nested too deeply")
        pattern, at = self._pattern, start + 1
        negated = pattern[at : at + 1] == b"^"
        at += negated
        members, operation, left = 0, b"", 0
        # Hyphens at the beginning, and then one "]", are themselves.
        while pattern[at : at + 1] == b"-":
            members, at = members | single(0x2D), at + 1
        if not members and pattern[at : at + 1] == b"]":
            members, at = single(0x5D), at + 1
        while at < len(pattern):
            pair = pattern[at : at + 2]
            if pattern[at] == 0x5D:
                members = _combined(operation, left, members)
                self._depth -= 1
                return (ANY & ~members if negated else members), at + 1
            if pair in (b"&&", b"--", b"~~"):
                left, operation, members, at = _combined(operation, left, members), pair, 0, at + 2
                continue
            item, at = self._item(at)
            members |= item
        raise BracketError("'[' without its ']'")

    def _item(self, at: int) -> tuple[int, int]:
        pattern = self._pattern
        if pattern[at] == 0x5B:
            return _posix(pattern, at) or self.parse(at)
        item, at = self._atom(at)
        if pattern[at : at + 1] != b"-" or pattern[at + 1 : at + 2] in (b"]", b"-", b""):
            return item, at
        last, at = self._atom(at + 1)
        return _range(item, last), at

    def _atom(self, at: int) -> tuple[int, int]:
        byte = self._pattern[at]
        if byte == 0x5C:
            return self._escape(at)
        if byte > 0x7F:
            raise BracketError("characters beyond ASCII inside brackets")
        return single(byte), at + 1


def _combined(operation: bytes, left: int, right: int) -> int:
    if operation == b"&&":
        return left & right
    if operation == b"--":
        return left & ~right
    if operation == b"~~":
        return left ^ right
    return right
