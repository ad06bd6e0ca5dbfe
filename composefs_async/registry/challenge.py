"""``WWW-Authenticate``: what a server wants to be shown (RFC 9110, section 11); no I/O.

Owns the grammar.  Several challenges may stand in one line, and several lines may come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Challenge", "parse_challenges"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SPACE = re.compile(r"[ \t]*")
_LIMIT = 16 << 10
_MOST = 32


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme with its parameters."""

    scheme: str
    """In lower case."""
    parameters: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """Names in lower case; of equal names the first counts."""
    token68: str | None = None


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """All challenges of all header lines, in their order.  What follows a malformed part of a line is left out."""
    found: list[Challenge] = []
    for line in lines:
        found += _Line(line[:_LIMIT]).parse()
    return found[:_MOST]


class _Line:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def parse(self) -> list[Challenge]:
        found: list[Challenge] = []
        while True:
            self._skip_commas()
            scheme = self._match(_TOKEN)
            if scheme is None:
                return found
            parameters, token68 = self._parameters()
            found.append(Challenge(scheme.lower(), parameters, token68))

    def _parameters(self) -> tuple[dict[str, str], str | None]:
        found: dict[str, str] = {}
        self._match(_SPACE)
        start = self._at
        token68 = self._match(_TOKEN68)
        if token68 is not None and self._at_separator() and (token68.endswith("=") or not self._is_scheme_next(start)):
            return found, token68
        self._at = start
        while True:
            before = self._at
            self._skip_commas()
            parameter = self._parameter()
            if parameter is None:
                self._at = before
                return found, None
            found.setdefault(parameter[0].lower(), parameter[1])

    def _at_separator(self) -> bool:
        self._match(_SPACE)
        return self._at == len(self._text) or self._text[self._at] == ","

    def _is_scheme_next(self, start: int) -> bool:
        """Whether what stands there is ``name=`` of a parameter: then it is no token68."""
        return "=" in self._text[start : self._at].rstrip("=")

    def _parameter(self) -> tuple[str, str] | None:
        name = self._match(_TOKEN)
        self._match(_SPACE)
        if name is None or not self._text.startswith("=", self._at):
            return None
        self._at += 1
        self._match(_SPACE)
        value = self._quoted() if self._text.startswith('"', self._at) else self._match(_TOKEN)
        return None if value is None else (name, value)

    def _quoted(self) -> str | None:
        value: list[str] = []
        at = self._at + 1
        while at < len(self._text):
            char = self._text[at]
            if char == '"':
                self._at = at + 1
                return "".join(value)
            if char == "\\" and at + 1 < len(self._text):
                at += 1
                char = self._text[at]
            value.append(char)
            at += 1
        return None

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _skip_commas(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in ", \t":
            self._at += 1
