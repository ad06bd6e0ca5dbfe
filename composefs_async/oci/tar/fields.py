"""The fields of a tar header: numbers in their spellings, sums of bytes, text; and what is remembered of them.

Owns one field at a time; every refusal is a ValueError, to which others add the place.  It does not own what the
fields of a header mean together (`header`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from zlib_ng import zlib_ng

from .pax import signed64

__all__ = [
    "FieldMemos",
    "Memo",
    "byte_sum",
    "device",
    "field_memos",
    "number",
    "signed_excess",
    "text",
]

_DEV_MAJOR_MAX, _DEV_MINOR_MAX = 0xFFF, 0xFFFFF  # dev_t of Linux (linux/kdev_t.h)
_OCTAL = re.compile(rb"[0-7]*")

V = TypeVar("V")


class Memo(dict[bytes, V], Generic[V]):
    """A bounded cache of *function*, since the same header fields come again and again.  Errors are not kept."""

    __slots__ = ("_function", "_limit")

    def __init__(self, function: Callable[[bytes], V], limit: int = 1 << 14) -> None:
        super().__init__()
        self._function, self._limit = function, limit

    def __missing__(self, field: bytes) -> V:
        if len(self) >= self._limit:
            self.clear()
        found = self[field] = self._function(field)
        return found


class FieldMemos(NamedTuple):
    """What header fields mean, each raising ValueError for what is no number."""

    sizes: Memo[int]
    """Of the 12 bytes from 124 on."""
    owners: Memo[tuple[int, int, int]]
    """Mode, uid and gid of the 24 bytes from 100 on."""
    times: Memo[int]
    """Nanoseconds, of the 12 bytes from 136 on."""
    sums: Memo[int]
    """What all 512 bytes must add up to, by the 8 bytes from 148 on."""


def number(field: bytes) -> int:
    """An octal or base-256 number that is not negative.

    Raises:
        ValueError: it is neither.
    """
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 8 * len(field) - 1) - 1)
    digits = field.partition(b"\0")[0].strip()
    if not _OCTAL.fullmatch(digits):
        raise ValueError(f"{field!r} is not a number")
    return int(digits or b"0", 8)


def _mode_and_owner(fields: bytes) -> tuple[int, int, int]:
    # Old writers stored st_mode whole, and some a type in it that is not the member's.
    mode = number(fields[:8]) & 0o7777
    return mode, number(fields[8:16]) & 0xFFFFFFFF, number(fields[16:]) & 0xFFFFFFFF


def _mtime_ns(field: bytes) -> int:
    # Base-256 numbers are two's complement and may be negative.
    return signed64(number(field)) * 1_000_000_000


def _byte_sum_of_field(field: bytes) -> int:
    return number(field) - 8 * 0x20 + sum(field)  # the checksum counts its own field as eight spaces


def byte_sum(header: bytes) -> int:
    """The sum of the bytes of a header, or a part of one; at most 512 bytes."""
    # Adler-32 has one plus the sum of the bytes, modulo 65521, in its lower half. 256 bytes cannot reach that.
    adler32 = zlib_ng.adler32
    return (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2


def signed_excess(header: bytes) -> int:
    """How much the sum of unsigned bytes exceeds that of signed ones, which some writers of the 1980s made."""
    return 256 * sum(byte >> 7 for byte in header[:148] + header[156:])


def text(field: bytes) -> bytes:
    """Up to the first NUL."""
    return field.partition(b"\0")[0]


def device(header: bytes) -> int:
    """The numbers of a device, as ``st_rdev`` on Linux."""
    major, minor = number(header[329:337]), number(header[337:345])
    if major > _DEV_MAJOR_MAX or minor > _DEV_MINOR_MAX:
        raise ValueError(f"there is no device {major}:{minor}")
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def field_memos() -> FieldMemos:
    """What is remembered of the fields of one archive."""
    return FieldMemos(Memo(number), Memo(_mode_and_owner), Memo(_mtime_ns), Memo(_byte_sum_of_field))
