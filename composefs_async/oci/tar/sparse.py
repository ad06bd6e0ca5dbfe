"""Sparse members of PAX archives: which there are, and where the pieces of data belong.

Owns the three forms, 0.0, 0.1 and 1.0, after the GNU tar manual "Storing Sparse Files", and what is refused: every
refusal is a ValueError, to which others add the place.  It does not own records in general (`pax`), nor making the
file that a member means (`sparse_contents`).

A map is pairs of offset and length, in ascending order and without overlap; the data of all pieces stand one behind
the other.  All input is untrusted: a map has at most `MAX_MAP` bytes, and its numbers are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from ...digest import ObjectId

__all__ = ["MAX_MAP", "SparseContent", "SparseForm", "SparseRecords", "stored_segments"]

MAX_MAP: Final = 1 << 20
"""Of a map at the head of a member's data, in bytes, as Go's archive/tar has it."""

_BLOCK: Final = 512
_NUMBER: Final = re.compile(rb"[0-9]{1,19}")
_NUMBERS_MAX: Final = MAX_MAP // 2  # a digit and a separator each
_VERSIONS: Final = {(b"0", b"0"): 0, (b"0", b"1"): 0, (b"1", b"0"): 1}

Segment = tuple[int, int]
"""Offset in the file and length, in bytes."""


class SparseForm(NamedTuple):
    """How the data behind a header become a file."""

    size: int
    """Size of the file in bytes."""
    stored: int
    """Size of the data behind the header, in bytes."""
    map: bytes | None
    """Decimal numbers with commas between them; None if the map stands at the head of the data."""

    def segments(self, head: bytes) -> tuple[list[Segment], int] | None:
        """The pieces, and where in the data they begin; None if *head*, how the data begin, is too short to tell.

        Raises:
            ValueError: the map does not fit the file or the data.
        """
        if self.map is not None:
            return _checked(self.map.split(b",") if self.map else [], self.size, self.stored), 0
        found = _numbers_of(head[:MAX_MAP], self.stored)
        if found is None:
            return None
        numbers, begin = found
        return _checked(numbers, self.size, self.stored - begin), begin


class SparseContent(NamedTuple):
    """The content of a sparse file as the archive has it: less than the file, and perhaps a map before it."""

    stored: bytes | ObjectId
    """The data behind the header: themselves if they are at most 64 bytes, the object that holds them if more."""
    form: SparseForm


class SparseRecords:
    """Collects the records ``GNU.sparse.…`` of one extended header."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._pairs: list[bytes] = []

    def take(self, key: bytes, value: bytes) -> None:
        """Take one record; *key* is what follows ``GNU.sparse.``."""
        if key not in (b"offset", b"numbytes"):
            self._values[key] = value
        elif (key == b"offset") == (len(self._pairs) % 2 == 0):
            self._pairs.append(value)
        else:
            raise ValueError("offsets and lengths of a sparse member do not take turns")

    @property
    def name(self) -> bytes:
        """The name of the member; empty if other records say it."""
        return self._values.get(b"name", b"") if self._version is not None else b""

    @property
    def _version(self) -> int | None:
        """The major one; None if the records make no sparse member."""
        values = self._values
        major, minor = values.get(b"major", b""), values.get(b"minor", b"")
        if major or minor:
            if (major, minor) not in _VERSIONS:
                raise ValueError(f"a sparse member of version {major[:20]!r}.{minor[:20]!r}, which is not known")
            return _VERSIONS[major, minor]
        return 0 if values.get(b"map") or values.get(b"numblocks") or self._pairs else None

    def form(self, stored: int) -> SparseForm | None:
        """What *stored* bytes of data mean; None if it is no sparse member.

        Raises:
            ValueError: it makes no sense, or a map that is here does not fit.
        """
        version, values = self._version, self._values
        if version is None:
            return None
        claimed = values.get(b"size") or values.get(b"realsize")
        size = stored if not claimed else _number(claimed)
        if version:
            if stored < _BLOCK:
                raise ValueError(f"a sparse member with {stored} bytes of data, which hold no map")
            return SparseForm(size, stored, None)
        form = SparseForm(size, stored, b",".join(self._pairs) if self._pairs else values.get(b"map", b""))
        segments, _ = form.segments(b"") or ([], 0)
        blocks = values.get(b"numblocks")
        if blocks and _number(blocks) != len(segments):
            raise ValueError(f"a sparse member of {blocks[:20].decode()} pieces, but a map of {len(segments)}")
        return form


def stored_segments(segments: list[Segment], size: int) -> Iterator[tuple[int, int]]:
    """What a file of *size* bytes consists of, in order: lengths of a hole and of the data behind it."""
    at = 0
    for offset, length in segments:
        if length:
            yield offset - at, length
            at = offset + length
    if at < size:
        yield size - at, 0


def _number(text: bytes) -> int:
    if not _NUMBER.fullmatch(text) or (found := int(text)) >> 63:
        raise ValueError(f"{text[:32]!r} in a sparse member is no number of 63 bits")
    return found


def _numbers_of(head: bytes, stored: int) -> tuple[list[bytes], int] | None:
    """The numbers of a map before the data, of which there are *stored* bytes with it, and where the data begin."""
    whole = len(head) >= min(stored, MAX_MAP)
    first = head.find(b"\n", 0, 32)
    if first < 0:
        if whole or len(head) >= 32:
            raise ValueError("a sparse member whose data do not begin with a map")
        return None
    count = 2 * _number(head[:first])
    if count > _NUMBERS_MAX:
        raise ValueError(f"a sparse member with a map of {count} numbers, more than {_NUMBERS_MAX}")
    parts = head.split(b"\n", count + 1)
    if len(parts) < count + 2:
        if whole:
            raise ValueError("a sparse member whose map does not end")
        return None
    end = len(head) - len(parts.pop())
    return parts[1:], min(-(-end // _BLOCK) * _BLOCK, stored)


def _checked(numbers: list[bytes], size: int, stored: int) -> list[Segment]:
    if len(numbers) % 2:
        raise ValueError(f"a sparse member with a map of {len(numbers)} numbers, which are no pairs")
    segments: list[Segment] = []
    end = total = 0
    values = map(_number, numbers)
    for offset, length in zip(values, values, strict=True):
        if offset < end or offset + length > size:
            raise ValueError(f"a sparse member of {size} bytes with {length} bytes at {offset}, behind {end}")
        segments.append((offset, length))
        end, total = offset + length, total + length
    if total != stored:
        raise ValueError(f"a sparse member with {stored} bytes of data and a map of {total}")
    return segments
