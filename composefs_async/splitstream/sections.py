"""Reads the sections of a splitstream file: bounded copies, tables of ids, named references, unpacked bodies.

It knows nothing of chunks.  Whatever a file claims, memory is bounded by what it really contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from .._zstd import zstd
from ..digest import Algorithm, ObjectId
from ..errors import SplitstreamError
from .format import Section
from .protocols import PositionalSource

__all__ = ["MAX_NAMED_REFS", "MAX_REFS", "PIECE", "ObjectIds", "PackedSection", "parse_named_refs", "read_section"]

PIECE = 128 * 1024
"""Unpacked content is handed over in pieces of at most so many bytes."""
MAX_REFS = 1 << 30
"""The largest table of ids that is read, in bytes: 16 million objects of SHA-512."""
MAX_NAMED_REFS = 4 << 20
"""The largest unpacked section of named references, in bytes: 50,000 layers."""

_READ = 64 * 1024
_U64_DIGITS = 20


class ObjectIds(Sequence[ObjectId]):
    """A table of ids; they stay packed until asked for."""

    __slots__ = ("_raw", "_width")

    def __init__(self, raw: bytes, algorithm: Algorithm) -> None:
        self._raw, self._width = raw, algorithm.digest_size

    def __len__(self) -> int:
        return len(self._raw) // self._width

    @overload
    def __getitem__(self, index: int) -> ObjectId: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ObjectId, ...]: ...
    def __getitem__(self, index: int | slice) -> ObjectId | tuple[ObjectId, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        at = range(len(self))[index] * self._width
        return ObjectId(self._raw[at : at + self._width])

    def __iter__(self) -> Iterator[ObjectId]:
        raw, width = self._raw, self._width
        return (ObjectId(raw[at : at + width]) for at in range(0, len(raw), width))

    def __bytes__(self) -> bytes:
        return self._raw

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ObjectIds):
            return self._raw == other._raw and self._width == other._width
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))  # of the tuple it is equal to

    def __repr__(self) -> str:
        return f"<ObjectIds of {len(self)}>"


def read_section(source: PositionalSource, section: Section, what: str, name: str) -> bytes:
    """All bytes of a section that is known to lie inside the file.

    Raises:
        SplitstreamError: the file has become shorter.
    """
    pieces: list[bytes] = []
    at = section.start
    while at < section.end:
        piece = source.pread(section.end - at, at)
        if not piece:
            raise SplitstreamError(f"the file ends inside the {what} section", at, name)
        pieces.append(piece)
        at += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class PackedSection:
    """Unpacks a section of one or more zstd frames as it is read.

    Args:
        section: it must lie inside the file.
        what: it is called, for messages.
        name: of the stream, for messages.
    """

    def __init__(self, source: PositionalSource, section: Section, what: str, name: str) -> None:
        self._source, self._next, self._end = source, section.start, section.end
        self._what, self._name = what, name
        self._frame = zstd.ZstdDecompressor()
        self._piece = b""
        self._at = 0  # of what follows, in the piece
        self._piece_offset = 0

    @property
    def offset(self) -> int:
        """Where what follows is, in the unpacked section."""
        return self._piece_offset + self._at

    def read_some(self, size: int) -> bytes:
        """Read at least one byte and at most *size* or `PIECE`; none only at the end.

        Raises:
            SplitstreamError: the section cannot be unpacked.
        """
        if self._at == len(self._piece):
            self._piece_offset += self._at
            self._piece, self._at = self._unpack(), 0
        start = self._at
        some = self._piece[start : start + size]
        self._at = start + len(some)
        return some

    def read(self, size: int) -> bytes:
        """*size* bytes, or fewer if the section ends before.  Never allocates more than there is.

        Raises:
            SplitstreamError: the section cannot be unpacked.
        """
        some = self.read_some(size)
        if len(some) == size or not some:
            return some
        pieces, missing = [some], size - len(some)
        while missing and (some := self.read_some(missing)):
            pieces.append(some)
            missing -= len(some)
        return b"".join(pieces)

    def _unpack(self) -> bytes:
        """The next piece; empty at the end, which is right only between two frames."""
        while True:
            packed = b""
            if self._frame.eof:
                packed = self._frame.unused_data or self._read_packed()
                if not packed:
                    return b""
                self._frame = zstd.ZstdDecompressor()
            elif self._frame.needs_input and not (packed := self._read_packed()):
                raise SplitstreamError(f"the {self._what} section ends inside a zstd frame", self._end, self._name)
            try:
                piece = self._frame.decompress(packed, PIECE)
            except zstd.ZstdError as error:
                reason = f"the {self._what} section cannot be unpacked, read up to here: {error}"
                raise SplitstreamError(reason, self._next, self._name) from error
            if piece:
                return piece

    def _read_packed(self) -> bytes:
        size = min(_READ, self._end - self._next)
        if not size:
            return b""
        packed = self._source.pread(size, self._next)
        if not packed:
            raise SplitstreamError(f"the file ends inside the {self._what} section", self._next, self._name)
        self._next += len(packed)
        return packed


def parse_named_refs(packed: PackedSection, stream_refs: ObjectIds, name: str) -> dict[str, ObjectId]:
    """The names in the order of the file; a repeated one means its last stream.  Safe for untrusted input.

    Args:
        name: of the stream, for messages.

    Raises:
        SplitstreamError: at an offset in the unpacked section.
    """
    raw = packed.read(MAX_NAMED_REFS + 1)
    if len(raw) > MAX_NAMED_REFS:
        reason = f"the named references unpack to more than {MAX_NAMED_REFS} bytes"
        raise SplitstreamError(reason, MAX_NAMED_REFS, name)
    if raw and not raw.endswith(b"\0"):
        reason = "the last of the named references does not end in NUL, in the unpacked section"
        raise SplitstreamError(reason, len(raw), name)
    found: dict[str, ObjectId] = {}
    at = 0
    while at < len(raw):
        end = raw.index(0, at)
        key, index = _parse_record(raw[at:end], at, name)
        if index >= len(stream_refs):
            reason = f"named reference {key[:100]!r} means stream {index}, but there are {len(stream_refs)}"
            raise SplitstreamError(f"{reason}, in the unpacked section", at, name)
        found[key] = stream_refs[index]
        at = end + 1
    return found


def _parse_record(record: bytes, at: int, name: str) -> tuple[str, int]:
    """Split ``index:name``, where the index may have a plus sign and leading zeros."""
    index, colon, key = record.partition(b":")
    digits = index.removeprefix(b"+")
    significant = digits.lstrip(b"0")
    if not colon:
        raise SplitstreamError("a named reference lacks the colon behind its index, in the unpacked section", at, name)
    if not digits.isdigit() or len(significant) > _U64_DIGITS:
        raise SplitstreamError("the index of a named reference is no number, in the unpacked section", at, name)
    try:
        return key.decode(), int(significant or b"0")
    except UnicodeDecodeError:
        raise SplitstreamError("a named reference is not UTF-8, in the unpacked section", at, name) from None
