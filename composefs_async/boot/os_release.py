"""os-release(5): what an operating system calls itself; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import BootError

__all__ = ["OS_RELEASE_LIMIT", "OsRelease", "parse_os_release"]

OS_RELEASE_LIMIT: Final = 1 << 20
"""Bytes of a file that is read."""


@dataclass(frozen=True, slots=True)
class OsRelease:
    """The fields that boot menus need."""

    fields: dict[str, str]

    @property
    def id(self) -> str:
        """``ID``, or ``linux`` as os-release(5) wants it."""
        return self.fields.get("ID") or "linux"

    @property
    def name(self) -> str:
        """``PRETTY_NAME``, ``NAME`` or ``ID``."""
        return next((self.fields[key] for key in ("PRETTY_NAME", "NAME", "ID") if self.fields.get(key)), "Linux")

    @property
    def version(self) -> str:
        """``VERSION_ID`` or ``VERSION``; empty if there is none."""
        return self.fields.get("VERSION_ID") or self.fields.get("VERSION") or ""

    @property
    def label(self) -> str:
        """Name and version, as the Boot Loader Specification has it for unified kernel images."""
        return f"{self.name} {self.version}".rstrip()


def parse_os_release(content: bytes) -> OsRelease:
    """Read a file; a value whose quotes do not end counts as absent, and of equal keys the last counts.

    Raises:
        BootError: it is not UTF-8, or too long.
    """
    if len(content) > OS_RELEASE_LIMIT:
        raise BootError("os-release", f"{len(content)} bytes are more than {OS_RELEASE_LIMIT}")
    try:
        text = content.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise BootError("os-release", "it is not UTF-8") from None
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        key, equals, value = line.partition("=")
        if not equals or line.lstrip().startswith("#"):
            continue
        plain = _unquoted(value.strip())
        if plain is None or "\0" in plain:
            fields.pop(key, None)
        else:
            fields[key] = plain
    return OsRelease(fields)


def _unquoted(value: str) -> str | None:
    found: list[str] = []
    quote, escaped = "", False
    for char in value:
        if escaped:
            found.append(char)
            escaped = False
        elif quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"':
                escaped = True
            else:
                found.append(char)
        elif char in "\"'":
            quote = char
        else:
            found.append(char)
    return None if quote else "".join(found)
