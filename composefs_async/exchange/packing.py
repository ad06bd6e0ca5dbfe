"""Packs: members end to end, each compressed on its own, made of runs of objects of a repository.

Owns reading and verifying objects, compressing and hashing.  Does not own where packs go.  Blocks; what takes time does
so without the interpreter lock.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .. import fsverity
from .._maintenance.fsck.object_reader import Failure, load
from .._repo import objects
from .._repo.state import RepoState
from .._zstd import zstd
from ..digest import ObjectId
from ..errors import DigestMismatchError, ObjectNotFoundError
from .documents import PACK_TYPE, Descriptor
from .plan import Place
from .table import Coding

__all__ = ["LEVEL", "PACK_SIZE", "Pack", "Packer", "compress_member", "new_salt", "pack_large", "verified_contents"]

PACK_SIZE = 16 << 20
"""Bytes at which a pack is full."""
LEVEL = 3
SALT_SIZE = 16
_SAVING = 0.97
"""A member that compression does not make smaller than that share of its object is stored as it is."""
_BUFFER = 4 << 20
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that is ready to be sent."""

    blob: Descriptor
    members: dict[ObjectId, Place]
    data: bytearray | Path = field(repr=False)


class Packer:
    """Compresses objects of one repository.  Used by one thread at a time; keeps a buffer of 4 MiB."""

    def __init__(self, state: RepoState, *, level: int = LEVEL, pack_size: int = PACK_SIZE) -> None:
        self._state, self._level, self._pack_size = state, level, pack_size
        self._compressor = zstd.ZstdCompressor(level)
        self._buffer = bytearray(_BUFFER)

    def packs(self, ids: Sequence[ObjectId], *, salt: bytes = b"") -> Iterator[Pack]:
        """Make packs of a run of objects, in their order.

        A pack ends where it is full, so that the same run always makes the same packs.

        Raises:
            ObjectNotFoundError, DigestMismatchError: an object is not there, or damaged.
        """
        data, members = bytearray(salt), dict[ObjectId, Place]()
        for object_id, content in verified_contents(self._state, ids, self._buffer):
            if len(data) >= self._pack_size:
                yield _finish(data, members)
                data, members = bytearray(salt), {}
            coding, stored = compress_member(self._compressor, content)
            members[object_id] = Place(len(data), len(stored), len(content), coding)
            data += stored
        if members:
            yield _finish(data, members)


def verified_contents(
    state: RepoState, ids: Sequence[ObjectId], buffer: bytearray | None = None
) -> Iterator[tuple[ObjectId, memoryview]]:
    """The content of each object, compared with its id; valid until the next one is asked for.  Blocks.

    Raises:
        ObjectNotFoundError, DigestMismatchError: an object is not there, or damaged.
    """
    buffer = bytearray(_BUFFER) if buffer is None else buffer
    table, width, at = b"".join(ids), state.algorithm.digest_size, 0
    while at < len(ids):
        loaded = load(state, table[at * width :], buffer)
        failures = {failure.at: failure for failure in loaded.failures}
        view, offset = memoryview(buffer), 0
        for index in range(loaded.taken):
            size = loaded.sizes[index]
            object_id = ids[at + index]
            failure = failures.get(index)
            if failure is not None and failure.step == "large":
                yield object_id, memoryview(objects.read_object(state, object_id))
                continue
            if failure is not None:
                raise _failed(object_id, failure)
            yield object_id, view[offset : offset + size]
            offset += size
        at += loaded.taken


def _failed(object_id: ObjectId, failure: Failure) -> Exception:
    if failure.step == "digest":
        return DigestMismatchError(f"object {object_id.hex()}", object_id.hex(), failure.digest.hex())
    if failure.step == "open" and failure.error:
        return ObjectNotFoundError(object_id.hex(), reason=os.strerror(failure.error))
    return DigestMismatchError(
        f"object {object_id.hex()}", object_id.hex(), f"nothing that can be read ({failure.step})"
    )


def compress_member(compressor: zstd.ZstdCompressor, content: memoryview) -> tuple[int, bytes | memoryview]:
    """How *content* is stored: one zstd frame that declares its size, or as it is where that saves little."""
    frame = compressor.compress(content, zstd.ZstdCompressor.FLUSH_FRAME)
    if len(frame) > len(content) * _SAVING:
        return Coding.RAW, content
    return Coding.ZSTD, frame


def _finish(data: bytearray, members: dict[ObjectId, Place]) -> Pack:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Pack(Descriptor(PACK_TYPE, digest, len(data)), members, data)


@contextmanager
def pack_large(
    state: RepoState, object_id: ObjectId, *, level: int = LEVEL, salt: bytes = b"", check: Callable[[], object]
) -> Iterator[Pack]:
    """A pack of one large object, in a temporary file that is removed at the end of the block.

    Memory is bounded whatever the object's size.

    Raises:
        ObjectNotFoundError, DigestMismatchError
    """
    with tempfile.NamedTemporaryFile(prefix="composefs-async-pack-") as packed:
        with open(objects.open_object(state, object_id), "rb", buffering=0) as source:
            size = os.fstat(source.fileno()).st_size
            packed.write(salt)
            hasher, verity = hashlib.sha256(salt), fsverity.Hasher(state.algorithm)
            compressor = zstd.ZstdCompressor(level)
            compressor.set_pledged_input_size(size)
            stored = 0
            while piece := source.read(_PIECE):
                check()
                verity.update(piece)
                frame = compressor.compress(piece)
                hasher.update(frame)
                stored += packed.write(frame)
            tail = compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)
            hasher.update(tail)
            stored += packed.write(tail)
            if (found := verity.id()) != object_id:
                raise DigestMismatchError(f"object {object_id.hex()}", object_id.hex(), found.hex())
            coding = Coding.ZSTD
            if stored > size * _SAVING:
                packed.seek(len(salt))
                packed.truncate()
                hasher, coding, stored = hashlib.sha256(salt), Coding.RAW, size
                source.seek(0)
                while piece := source.read(_PIECE):
                    check()
                    hasher.update(piece)
                    packed.write(piece)
        packed.flush()
        blob = Descriptor(PACK_TYPE, f"sha256:{hasher.hexdigest()}", len(salt) + stored)
        yield Pack(blob, {object_id: Place(len(salt), stored, size, coding)}, Path(packed.name))


def new_salt() -> bytes:
    """Random bytes that give a pack, table, config or manifest another digest."""
    return secrets.token_bytes(SALT_SIZE)
