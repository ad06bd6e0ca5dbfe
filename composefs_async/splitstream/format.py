"""The fixed parts of a splitstream file: header, info, section ranges; no sections' content, no I/O.

Little-endian throughout.  Two orders of the header exist: composefs-rs wrote its fields as the compiler
had sorted them from 2026-01-08 on, and in declaration order since 2026-03-17.  What follows the header
is the same.  Files from before 2026-01 have no header at all; they are recognised and refused.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from ..digest import Algorithm
from ..errors import AlgorithmMismatchError, SplitstreamError

__all__ = [
    "CONTENT_TYPE_OFFSET",
    "HEADER_SIZE",
    "INFO_SIZE",
    "MAGIC",
    "OCI_BLOB",
    "OCI_CONFIG",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "RANGE_OFFSETS",
    "U64_MAX",
    "Generation",
    "Header",
    "Info",
    "Section",
    "content_type_name",
    "pack_header",
    "pack_info",
    "unpack_header",
    "unpack_info",
]

MAGIC = b"SplitStream"
HEADER_SIZE = 32
INFO_SIZE = 80
"""In bytes; a reader ignores what a longer info holds behind them."""
U64_MAX = 2**64 - 1

# Content types are eight ASCII characters read as one number (composefs-oci).
OCI_LAYER = int.from_bytes(b"ocilayer", "little")
OCI_CONFIG = int.from_bytes(b"ociconfg", "little")
OCI_MANIFEST = int.from_bytes(b"ocimanif", "little")
OCI_BLOB = int.from_bytes(b"oci_blob", "little")

RANGE_OFFSETS = {"stream_refs": 0, "object_refs": 16, "stream": 32, "named_refs": 48}
"""Where the range of each section stands in the info."""
CONTENT_TYPE_OFFSET = 64

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LG_BLOCKSIZE = 12
_ALGORITHMS = {algorithm.number: algorithm for algorithm in Algorithm}
_MARCH = struct.Struct("<11sBHBBQQ")
_JANUARY = struct.Struct("<QQH11sBBB")
_INFO = struct.Struct("<10Q")


class Generation(enum.Enum):
    """When composefs-rs began to write this order of the header's fields."""

    JANUARY = "2026-01"
    MARCH = "2026-03"


@dataclass(frozen=True, slots=True)
class Section:
    """A half-open range of file offsets, in bytes."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Size of the section in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """The first 32 bytes."""

    algorithm: Algorithm
    info: Section
    flags: int = 0
    """Written as 0 and without meaning so far."""
    generation: Generation = Generation.MARCH


@dataclass(frozen=True, slots=True)
class Info:
    """Where the sections are, and what the stream says about itself."""

    stream_refs: Section
    object_refs: Section
    stream: Section
    named_refs: Section
    content_type: int
    stream_size: int
    """Size of the merged content in bytes, as claimed: nothing guarantees that it is true."""


def content_type_name(content_type: int) -> str:
    """The eight characters of a content type if they are printable, such as ``ocilayer``, else a hexadecimal number."""
    raw = content_type.to_bytes(8, "little")
    return raw.decode("ascii") if all(0x20 < byte < 0x7F for byte in raw) else f"{content_type:#x}"


def pack_header(header: Header) -> bytes:
    """Return *header* as the bytes that a file begins with."""
    start, end, flags, number = header.info.start, header.info.end, header.flags, header.algorithm.number
    if header.generation is Generation.MARCH:
        return _MARCH.pack(MAGIC, 0, flags, number, _LG_BLOCKSIZE, start, end)
    return _JANUARY.pack(start, end, flags, MAGIC, 0, number, _LG_BLOCKSIZE)


def pack_info(info: Info) -> bytes:
    """Return *info* as its bytes in the file."""
    sections = (info.stream_refs, info.object_refs, info.stream, info.named_refs)
    return _INFO.pack(*(n for s in sections for n in (s.start, s.end)), info.content_type, info.stream_size)


def unpack_header(raw: bytes, algorithm: Algorithm | None = None, name: str = "") -> Header:
    """Read the header of either order.  Safe for untrusted input; that the info exists is not checked.

    Args:
        raw: the first 32 bytes of the file; fewer only if it has no more.
        algorithm: if given, the only one accepted.
        name: of the stream, for messages.

    Raises:
        SplitstreamError: the bytes are no such header.
        AlgorithmMismatchError: the stream belongs to a repository of the other algorithm.
    """
    if raw.startswith(_ZSTD_MAGIC):
        reason = "the stream was written before 2026-01, in a form that cannot be read; import its source again"
        raise SplitstreamError(reason, 0, name)
    if len(raw) < HEADER_SIZE:
        raise SplitstreamError(f"the file ends inside the header of {HEADER_SIZE} bytes", len(raw), name)
    if raw.startswith(MAGIC):
        _, version, flags, number, lg_blocksize, start, end = _MARCH.unpack_from(raw)
        generation, at = Generation.MARCH, 11
    elif raw[18:29] == MAGIC:
        start, end, flags, _, version, number, lg_blocksize = _JANUARY.unpack_from(raw)
        generation, at = Generation.JANUARY, 29
    else:
        raise SplitstreamError("the header lacks the magic value 'SplitStream'", 0, name)
    at_number = at + (3 if generation is Generation.MARCH else 1)
    if version != 0:
        raise SplitstreamError(f"version {version} is unknown, only 0 is", at, name)
    if number not in _ALGORITHMS:
        raise SplitstreamError(f"fs-verity algorithm {number} is unknown", at_number, name)
    _check_algorithm(_ALGORITHMS[number], algorithm, name)
    if lg_blocksize != _LG_BLOCKSIZE:
        raise SplitstreamError(f"fs-verity block size 2^{lg_blocksize} is unknown, only 2^12 is", at_number + 1, name)
    return Header(_ALGORITHMS[number], Section(start, end), flags, generation)


def unpack_info(raw: bytes, offset: int, name: str = "") -> Info:
    """Read the info section.  Safe for untrusted input; the ranges in it are not checked.

    Args:
        raw: the first 80 bytes of the section; fewer only if it has no more.
        offset: of the section in the file, for messages.
        name: of the stream, for messages.

    Raises:
        SplitstreamError: there are fewer bytes.
    """
    if len(raw) < INFO_SIZE:
        raise SplitstreamError(f"the info section has {len(raw)} of {INFO_SIZE} bytes", offset, name)
    n: tuple[int, ...] = _INFO.unpack_from(raw)
    return Info(Section(n[0], n[1]), Section(n[2], n[3]), Section(n[4], n[5]), Section(n[6], n[7]), n[8], n[9])


def _check_algorithm(found: Algorithm, expected: Algorithm | None, name: str) -> None:
    if expected is not None and found is not expected:
        what = f"splitstream {name}" if name else "the splitstream"
        raise AlgorithmMismatchError(what, expected.value, found.value)
