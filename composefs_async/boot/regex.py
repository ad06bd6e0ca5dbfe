"""Regular expressions of SELinux policies, rewritten for `re` and for RE2 so that both mean what composefs-rs means.

Owns reading an expression, and what can be told of it without matching: its literal beginning, a text that every
match contains, whether it is a whole subtree.  Does not own brackets (`byteset`), nor which expression wins
(`matching`).

composefs-rs gives expressions to Rust's regex crate, with bytes for characters, and those that it cannot parse
(look-around, references to groups) to PCRE2.  Whole matches depend neither on greediness nor on the order of
alternatives, so a rewritten expression gives the same answer.  In the first kind ``.`` is any byte; in the second it
is not a newline.  libselinux gives every expression to PCRE2, with ``.`` for any byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .byteset import ANY, CLASSES, BracketError, both_cases, parse_bracket, pattern_of, single

__all__ = ["BELOW", "LITERAL", "OTHER", "SUBTREE", "BracketError", "Expression", "parse_expression"]

LITERAL, SUBTREE, BELOW, OTHER = "literal", "subtree", "below", "other"

_NESTED_MAX: Final = 100
_LENGTH_MAX: Final = 16384
_META: Final = frozenset(b"\\.+*?()|[]{}^$")
_QUANTIFIERS: Final = frozenset(b"*+?{")
_counted = re.compile(rb"\{(\d{1,9})(?:(,)(\d{1,9})?)?\}")
_ESCAPED: Final = {ord("a"): 7, ord("f"): 12, ord("t"): 9, ord("n"): 10, ord("r"): 13, ord("v"): 11}
_hexadecimal = re.compile(rb"\\(?:x\{([0-9A-Fa-f]{1,8})\}|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))")
# Plain text, but not its last character where that is repeated.
_plain = re.compile(rb"[A-Za-z0-9/_ ,:;=@%~#&!'\"<>-]+(?![*+?{])")
_group_start = re.compile(rb"\(\?(?:P?<[A-Za-z_][A-Za-z0-9_.\[\]]*>|([imsxuRU]*(?:-[imsxuRU]+)?)([:)]))")


@dataclass(frozen=True, slots=True)
class Expression:
    """One rewritten expression."""

    pattern: bytes
    """For `re`, with bytes."""
    re2: bytes | None
    """For RE2 with Latin-1; None if it cannot have it."""
    kind: str
    """`LITERAL`, `SUBTREE` (`prefix`, and all below it), `BELOW` (all below it), or `OTHER`."""
    prefix: bytes
    """What every match begins with; all of it for a literal, the top of a subtree, which has no slash at its end."""
    required: bytes
    """A text that every match contains, if its directory fits to `prefix`; perhaps empty."""


class _NotRustError(Exception):
    """The regex crate would not parse this."""


@dataclass(slots=True)
class _Piece:
    """An atom with its quantifiers, in both languages."""

    pattern: bytes
    re2: bytes
    literal: bytes | None


class _Level:
    """An open group: what has been read of it."""

    __slots__ = ("closing", "flags", "pieces", "split", "start")

    def __init__(self, start: bytes, flags: frozenset[str]) -> None:
        self.start, self.flags = start, flags
        self.pieces: list[_Piece] = []
        self.split = False
        """There was an alternative, so that nothing is certain of the whole."""


def parse_expression(source: bytes, *, grouped: bool = True) -> Expression:
    """Read one expression as it stands in a policy.

    Args:
        grouped: it is put into a group, as composefs-rs does it, which is group 1 for what refers to groups.

    Raises:
        BracketError: neither engine of composefs-rs would take it, or Python could not match it.
    """
    if len(source) > _LENGTH_MAX:
        raise BracketError(f"it has {len(source)} bytes, more than {_LENGTH_MAX}")
    try:
        return _Parser(source).parse()
    except _NotRustError:
        return _perl(source, grouped)


class _Parser:
    def __init__(self, source: bytes) -> None:
        self._source, self._at = source, 0
        self._levels = [_Level(b"", frozenset())]

    def parse(self) -> Expression:
        source = self._source
        while self._at < len(source):
            plain = _plain.match(source, self._at)
            if plain and "i" not in self._levels[-1].flags:
                self._levels[-1].pieces.append(_Piece(plain[0], plain[0], plain[0]))
                self._at = plain.end()
            else:
                self._step(source[self._at])
        if len(self._levels) > 1:
            raise BracketError("'(' without its ')'")
        return self._result(self._levels[0])

    def _step(self, byte: int) -> None:
        level = self._levels[-1]
        if byte == 0x28:
            self._open()
        elif byte == 0x29:
            self._close()
        elif byte == 0x7C:
            level.pieces.append(_Piece(b"|", b"|", None))
            level.split = True
            self._at += 1
        elif byte in _QUANTIFIERS:
            self._quantify(level)
        elif byte == 0x5B:
            try:
                members, self._at = parse_bracket(self._source, self._at, self._class_escape, rust=True)
            except BracketError:
                raise _NotRustError from None
            self._add_set(members)
        elif byte == 0x5C:
            self._escape()
        elif byte == 0x2E:
            self._add_set(ANY)
            self._at += 1
        elif byte in b"^$":
            self._anchor(rb"\A" if byte == 0x5E else rb"\z", byte)
            self._at += 1
        else:
            self._literal()

    # -- atoms

    def _literal(self) -> None:
        size = 1
        while self._source[self._at] > 0xBF and self._source[self._at + size : self._at + size + 1] >= b"\x80":
            if self._source[self._at + size] > 0xBF:
                break
            size += 1  # the bytes of one character stay together
        self._add_literal(self._source[self._at : self._at + size])
        self._at += size

    def _add_literal(self, text: bytes) -> None:
        if len(text) == 1 and "i" in self._levels[-1].flags:
            members = both_cases(single(text[0]))
            if members.bit_count() > 1:
                self._add_set(members)
                return
        escaped = b"".join(
            b"\\x%02x" % byte if byte in _META or not 0x20 < byte < 0x7F else b"%c" % byte for byte in text
        )
        whole = escaped if len(text) == 1 else b"(?:%b)" % escaped
        self._levels[-1].pieces.append(_Piece(whole, whole, text))

    def _add_set(self, members: int) -> None:
        if "i" in self._levels[-1].flags:
            members = both_cases(members)
        text = pattern_of(members)
        self._levels[-1].pieces.append(_Piece(text, text, None))

    def _anchor(self, text: bytes, byte: int = 0) -> None:
        if "m" in self._levels[-1].flags and byte:
            text = b"(?m:%c)" % byte
        python = rb"\Z" if text == rb"\z" else text
        self._levels[-1].pieces.append(_Piece(python, text, None))

    def _escape(self) -> None:
        byte = self._source[self._at + 1 : self._at + 2]
        if byte in (b"A", b"z", b"b", b"B"):
            if byte == b"b" and self._source[self._at + 2 : self._at + 3] == b"{":
                raise BracketError("word boundaries of one side are not supported")
            self._anchor(b"\\" + byte)
            self._at += 2
            return
        members, self._at = self._class_escape(self._at)
        if members.bit_count() == 1:
            self._add_literal(bytes([members.bit_length() - 1]))
        else:
            self._add_set(members)

    def _class_escape(self, at: int) -> tuple[int, int]:
        """An escape that stands for one byte or a class."""
        byte = self._source[at + 1] if at + 1 < len(self._source) else 0x30
        if byte in CLASSES:
            return CLASSES[byte], at + 2
        if byte in _ESCAPED:
            return single(_ESCAPED[byte]), at + 2
        found = _hexadecimal.match(self._source, at)
        if found:
            value = int(next(filter(None, found.groups())), 16)
            if value > 0xFF:
                raise BracketError(f"the character {value:#x} is no byte")
            return single(value), found.end()
        if byte > 0x7F or byte in b"<>" or bytes([byte]).isalnum():
            raise _NotRustError
        return single(byte), at + 2

    # -- groups and quantifiers

    def _open(self) -> None:
        if len(self._levels) > _NESTED_MAX:
            raise BracketError("groups are nested too deeply")
        flags = self._levels[-1].flags
        if self._source[self._at + 1 : self._at + 2] != b"?":
            self._at += 1
            self._levels.append(_Level(b"(?:", flags))
            return
        found = _group_start.match(self._source, self._at)
        if not found or found[0] == b"(?)":
            raise _NotRustError
        if found[1] is not None:
            on, _, off = found[1].decode().partition("-")
            if "u" in on or "x" in on or "R" in on:
                raise BracketError(f"the flags {found[0].decode()!r} are not supported")
            flags = (flags | set(on)) - set(off)
        self._at = found.end()
        if found[2] == b")":
            self._levels[-1].flags = flags
        else:
            self._levels.append(_Level(b"(?:", flags))

    def _close(self) -> None:
        if len(self._levels) < 2:
            raise BracketError("')' without its '('")
        level = self._levels.pop()
        pattern, re2 = (
            (b"".join(parts) for parts in zip(*((p.pattern, p.re2) for p in level.pieces), strict=True))
            if (level.pieces)
            else (b"", b"")
        )
        self._levels[-1].pieces.append(_Piece(b"(?:%b)" % pattern, b"(?:%b)" % re2, None))
        self._at += 1

    def _quantify(self, level: _Level) -> None:
        source, byte = self._source, self._source[self._at]
        if not level.pieces or level.pieces[-1].pattern == b"|":
            if byte == 0x7B:
                raise _NotRustError
            raise BracketError(f"nothing to repeat before '{byte:c}'")
        if byte == 0x7B:
            found = _counted.match(source, self._at)
            if not found:
                raise _NotRustError
            if found[3] is not None and int(found[3]) < int(found[1]):
                raise BracketError(f"the repetition {found[0].decode()} ends before it begins")
            text, self._at = found[0], found.end()
        else:
            text, self._at = source[self._at : self._at + 1], self._at + 1
        if source[self._at : self._at + 1] == b"?":
            self._at += 1  # laziness does not matter for whole matches
        last = level.pieces.pop()
        level.pieces.append(_Piece(b"(?:%b)%b" % (last.pattern, text), b"(?:%b)%b" % (last.re2, text), None))

    # -- what is known of the whole

    def _result(self, level: _Level) -> Expression:
        pattern = b"".join(piece.pattern for piece in level.pieces)
        re2 = b"".join(piece.re2 for piece in level.pieces)
        if level.split:
            return Expression(pattern, re2, OTHER, b"", b"")
        runs, run = [], b""
        for piece in (*level.pieces, _Piece(b"", b"", None)):
            if piece.literal is not None:
                run += piece.literal
            else:
                runs.append(run)
                run = b""
        prefix, *others = runs
        # What is before the last slash of the prefix, a look at the directory has told.
        required = max(*others, b"" if prefix.endswith(b"/") else prefix, b"", key=len)
        kind = self._kind(level)
        return Expression(pattern, re2, kind, prefix[:-1] if kind == BELOW else prefix, required)

    def _kind(self, level: _Level) -> str:
        *others, last = level.pieces
        if any(piece.literal is None for piece in others):
            return OTHER
        if last.literal is not None:
            return LITERAL
        if self._source.endswith(b"(/.*)?"):
            return SUBTREE
        ends = self._source.endswith(b"/.*") and others and others[-1].literal is not None
        return BELOW if ends and (others[-1].literal or b"").endswith(b"/") else OTHER


# -- what Rust's engine refuses ----------------------------------------------------------------

_REFUSED: Final = {
    ord("Q"): "\\Q",
    ord("K"): "\\K",
    ord("R"): "\\R",
    ord("X"): "\\X",
    ord("C"): "\\C",
    ord("G"): "\\G",
    ord("p"): "\\p",
    ord("P"): "\\P",
    ord("k"): "\\k",
    ord("g"): "\\g",
    ord("h"): "\\h",
    ord("H"): "\\H",
    ord("N"): "\\N",
    ord("V"): "\\V",
}


def _perl(source: bytes, grouped: bool) -> Expression:
    """The expression in Python's dialect, which is that of PCRE2 but for brackets and some escapes."""
    pieces, at = [], 0
    while at < len(source):
        byte = source[at]
        if byte == 0x5B:
            members, at = parse_bracket(source, at, lambda place: _perl_escape(source, place), rust=False)
            pieces.append(pattern_of(members))
        elif byte == 0x5C and at + 1 < len(source):
            if source[at + 1] in _REFUSED:
                raise BracketError(f"{_REFUSED[source[at + 1]]} is not supported")
            piece = {b"z": rb"\Z", b"e": rb"\x1b"}.get(source[at + 1 : at + 2], source[at : at + 2])
            if piece[1:].isdigit() and piece != rb"\0":
                if source[at + 2 : at + 3].isdigit():
                    raise BracketError("references to more than nine groups are not supported")
                if grouped:  # the group around all is still open where it is referred to, so that nothing matches
                    piece = b"(?!)" if piece == rb"\1" else b"\\%d" % (int(piece[1:]) - 1)
            # Python has no meaning for other letters, and gives bytes beyond ASCII their own.
            pieces.append(piece)
            at += 2
        else:
            pieces.append(source[at : at + 1])
            at += 1
    return Expression(b"".join(pieces), None, OTHER, b"", b"")


def _perl_escape(source: bytes, at: int) -> tuple[int, int]:
    """An escape inside brackets."""
    byte = source[at + 1] if at + 1 < len(source) else 0x5C
    if byte in CLASSES:
        return CLASSES[byte], at + 2
    if byte in _ESCAPED:
        return single(_ESCAPED[byte]), at + 2
    found = _hexadecimal.match(source, at)
    if found and (found[1] or found[2]):
        value = int(found[1] or found[2], 16)
        if value <= 0xFF:
            return single(value), found.end()
    special = {ord("b"): 8, ord("e"): 0x1B}.get(byte)
    if special is not None:
        return single(special), at + 2
    if bytes([byte]).isalnum():
        raise BracketError(f"the escape \\{byte:c} inside brackets is not supported")
    return single(byte), at + 2
