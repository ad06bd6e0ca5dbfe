"""The tar of a zstd:chunked layer, put together of what has been fetched and what is at hand; blocks.

Owns which parts of a blob are missing, and the order of the pieces.  What comes out is not verified as a whole: who
reads it compares its digest with the diff_id, which proves all of it, whatever the table of contents said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, Protocol, TypeAlias

from ....digest import ObjectId
from ....errors import ComposefsError, DigestMismatchError, OciError
from ...importing.decompress import Compression, decompressor
from ...jsondoc import brief
from ...limits import Limits
from ..base import LocalBlob
from ..pieces import read_piece
from ..storage.recipe import FilePart, read_recipe
from .toc import Positions, Section, Toc, TocFile, parse_toc

__all__ = ["Contents", "Layer", "Need", "assemble", "missing_ranges", "open_layer", "read_toc"]

_PIECE: Final = 512 << 10
_GAP: Final = 16 << 10
"""Bytes between two missing parts that are rather fetched than asked for apart: a request costs about as much."""


class Contents(Protocol):
    """Files that are at hand, by their content.  Its functions block, and may be called in any thread."""

    def is_empty(self) -> bool:
        """Whether nothing at all is known."""
        ...

    def find(self, wanted: Sequence[TocFile]) -> dict[bytes, ObjectId]:
        """The objects that are said to be files of these digests and sizes, and are there; nothing if none is known."""
        ...

    def open(self, found: ObjectId) -> int:
        """A read-only descriptor of an object, which the caller closes."""
        ...

    def forget(self, digests: Sequence[bytes]) -> None:
        """Some of these files are not what they were said to be."""
        ...


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose sections have been fetched and fit each other."""

    name: str
    """For messages."""
    blob: LocalBlob
    """Where the parts of the blob arrive, at their offsets."""
    toc: Toc
    split: Section
    size: int
    """Of the tar, in bytes."""
    limits: Limits

    def recipe(self) -> Iterator[bytes | FilePart]:
        """The pieces of the tar in order."""
        part = LocalBlob(self.blob.fd, self.split.size, self.blob.path, self.blob.offset + self.split.offset)
        # No more than the annotations say.
        return read_recipe(part, self.name, replace(self.limits, max_layer_size=self.split.unpacked))


def read_toc(blob: LocalBlob, positions: Positions, name: str, limits: Limits) -> Toc:
    """The table of contents in a blob of which that part is there.

    Raises:
        DigestMismatchError, OciError, CompressionError
    """
    packed = read_piece(blob, positions.toc.offset, positions.toc.size)
    raw = b"".join(_unpacked(blob, positions.toc.offset, positions.toc.end, positions.toc.unpacked, limits))
    return parse_toc(packed, raw, positions, name)


def open_layer(blob: LocalBlob, positions: Positions, name: str, limits: Limits) -> Layer:
    """Read both sections of a layer, and compare them.

    Raises:
        DigestMismatchError, OciError, CompressionError: they are damaged, or do not fit each other.
    """
    toc = read_toc(blob, positions, name, limits)
    packed = read_piece(blob, positions.split.offset, positions.split.size)
    if (found := sha256(packed).hexdigest()) != toc.split_digest:
        raise DigestMismatchError(f"{name}, tar-split", f"sha256:{toc.split_digest}", f"sha256:{found}")
    layer = Layer(name, blob, toc, positions.split, 0, limits)
    files, size = iter(toc.files), 0
    for part in layer.recipe():
        if isinstance(part, FilePart):
            _same(layer, next(files, None), part)
            size += part.size
        else:
            size += len(part)
    if next(files, None) is not None:
        raise OciError(name, "its table of contents has a file more than its tar-split")
    return Layer(name, blob, toc, positions.split, size, limits)


def _same(layer: Layer, file: TocFile | None, part: FilePart) -> TocFile:
    """What the table of contents says of the file that the tar-split has next."""
    if file is None or (file.name, file.size) != (part.name, part.size):
        other = "nothing" if file is None else f"{brief(file.name.decode())} of {file.size} bytes"
        mine = f"{brief(part.name.decode(errors='backslashreplace'))} of {part.size} bytes"
        raise OciError(layer.name, f"its tar-split has {mine} where its table of contents has {other}")
    return file


def missing_ranges(files: Sequence[TocFile], local: Mapping[bytes, ObjectId]) -> list[tuple[int, int]]:
    """The parts of the blob with files that are not *local*; those that are near each other are one."""
    found: list[tuple[int, int]] = []
    for file in files:
        if file.digest not in local:
            if found and file.start - found[-1][1] <= _GAP:
                found[-1] = (found[-1][0], file.end)
            else:
                found.append((file.start, file.end))
    return found


@dataclass(frozen=True, slots=True)
class Need:
    """This part of the blob has to be there before the next piece is asked for."""

    start: int
    end: int


Open: TypeAlias = Callable[[ObjectId], int]


def assemble(layer: Layer, local: Mapping[bytes, ObjectId], open_object: Open) -> Generator[bytes | Need, int | None]:
    """The tar in pieces of about 512 KiB; *send* it up to where there is no gap after a `Need`.

    Raises:
        DigestMismatchError, CompressionError, OciError: a part is not what the table of contents says.
    """
    files, ready = iter(layer.toc.files), 0
    pieces: list[bytes] = []
    waiting = 0
    for part in layer.recipe():
        if isinstance(part, FilePart):
            file = _same(layer, next(files, None), part)
            found = local.get(file.digest)
            if found is None and file.end > ready:
                ready = (yield Need(file.start, file.end)) or 0
            content = _fetched(layer, file) if found is None else _at_hand(layer, file, found, open_object)
        else:
            content = iter([part])
        for piece in content:
            pieces.append(piece)
            waiting += len(piece)
            if waiting >= _PIECE:
                yield b"".join(pieces)
                pieces, waiting = [], 0
    if waiting:
        yield b"".join(pieces)


def _at_hand(layer: Layer, file: TocFile, found: ObjectId, open_object: Open) -> Iterator[bytes]:
    try:
        fd = open_object(found)
    except (ComposefsError, OSError) as error:
        raise OciError(layer.name, f"object {found.hex()}, which it has a file of: {error}") from error
    at = 0
    try:
        while at < file.size and (piece := os.pread(fd, min(_PIECE, file.size - at), at)):
            at += len(piece)
            yield piece
    except OSError as error:
        raise OciError(layer.name, f"object {found.hex()}, which it has a file of: {error}") from error
    finally:
        os.close(fd)
    if at != file.size:
        raise OciError(layer.name, f"object {found.hex()} has {at} bytes where {file.size} were expected")


def _fetched(layer: Layer, file: TocFile) -> Iterator[bytes]:
    hasher, size = sha256(), 0
    for piece in _unpacked(layer.blob, file.start, file.end, file.size, layer.limits):
        hasher.update(piece)
        size += len(piece)
        yield piece
    if hasher.digest() != file.digest or size != file.size:
        what = f"{layer.name}, {brief(file.name.decode())}"
        raise DigestMismatchError(what, f"sha256:{file.digest.hex()}", f"sha256:{hasher.hexdigest()}")


def _unpacked(blob: LocalBlob, start: int, end: int, size: int, limits: Limits) -> Iterator[bytes]:
    """What the zstd frames in a part of a blob unpack to: *size* bytes, or less if they are damaged."""
    unpacking = decompressor(Compression.ZSTD, max_size=size, max_ratio=limits.max_ratio, max_window=limits.max_window)
    buffer = memoryview(bytearray(min(_PIECE, size + 1)))
    at, ended = start, False
    while True:
        while not (filled := unpacking.read_into(buffer)):
            if ended:
                return
            piece = read_piece(blob, at, min(_PIECE, end - at))
            at += len(piece)
            if piece:
                unpacking.feed(piece)
            else:
                unpacking.finish()
                ended = True
        yield bytes(buffer[:filled])
