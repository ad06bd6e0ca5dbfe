"""The fs-verity digest in Python over hashlib: the twin of the native code, and what the two share.

Owns the Merkle tree and the descriptor (linux/fsverity.h, and the kernel's Documentation/filesystems/fsverity.rst).
Does not own the ioctls, which are in `composefs_async._sys`, nor the choice between the two, which is made in
`composefs_async.fsverity`.

A *level* is the concatenated hashes of the blocks below it.  A block that is not full is hashed as if zeros
followed.  The last level is the one that has a single hash, the root.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..digest import BLOCK_SIZE, Algorithm, ObjectId

__all__ = [
    "PIECE",
    "Buffer",
    "Hasher",
    "descriptor",
    "digest",
    "digest_from_pieces",
    "digest_many",
    "hash_blocks",
    "piece_hashes",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; an ``mmap`` is passed as a memoryview of it."""

PIECE = 128 * BLOCK_SIZE
"""512 KiB: a whole number of blocks of the second level for both algorithms, and small enough for a cache."""

# struct fsverity_descriptor of linux/fsverity.h: version, hash_algorithm, log_blocksize, salt_size, sig_size,
# data_size, root_hash, salt, reserved.
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144x")

_HASHES = {32: hashlib.sha256, 64: hashlib.sha512}
"""By the size of the digest."""

HashBlocks: TypeAlias = Callable[[Buffer, Algorithm], bytes]


def descriptor(algorithm: Algorithm, size: int, root: bytes) -> bytes:
    """The 256 bytes whose hash is the digest of a file of *size* bytes with the root hash *root*."""
    if len(root) != algorithm.digest_size:
        raise ValueError(f"a root hash of {algorithm.value} has {algorithm.digest_size} bytes, not {len(root)}")
    if not 0 <= size < 1 << 64:
        raise ValueError(f"a file cannot have {size} bytes")
    return _DESCRIPTOR.pack(1, algorithm.number, BLOCK_SIZE.bit_length() - 1, 0, 0, size, root, b"")


def hash_blocks(data: Buffer, algorithm: Algorithm) -> bytes:
    """The concatenated hashes of the 4096-byte blocks of *data*: one level of the tree."""
    new = _HASHES[algorithm.digest_size]
    view = memoryview(data).cast("B")
    if len(view) <= BLOCK_SIZE:  # most files, and the second level of most others
        return new(bytes(view).ljust(BLOCK_SIZE, b"\0")).digest() if view else b""
    whole = len(view) - len(view) % BLOCK_SIZE
    # hashlib gives the interpreter lock away for each block; several threads at this are slower than one.
    hashes = [new(view[at : at + BLOCK_SIZE]).digest() for at in range(0, whole, BLOCK_SIZE)]
    if whole < len(view):
        hashes.append(new(bytes(view[whole:]).ljust(BLOCK_SIZE, b"\0")).digest())
    return b"".join(hashes)


class Hasher:
    """Computes the digest of a file that comes in pieces of any size.

    Memory stays flat, below a mebibyte, whatever the size of the file.  Not for use by two threads at once.
    """

    _hash_blocks: HashBlocks = staticmethod(hash_blocks)

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.size: int = 0
        """What has been fed, in bytes."""
        self._rest = bytearray()
        # Hashes not yet hashed themselves, per level; only the last levels of a finished file are not full.
        self._levels: list[bytearray] = []

    def update(self, piece: Buffer) -> None:
        """Take the next bytes of the file."""
        view = memoryview(piece).cast("B")
        self.size += len(view)
        if self._rest or len(view) < PIECE:
            missing = PIECE - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) < PIECE:
                return
            self._add(0, self._hash_blocks(self._rest, self.algorithm))
            self._rest.clear()
        whole = len(view) - len(view) % PIECE
        for at in range(0, whole, PIECE):
            self._add(0, self._hash_blocks(view[at : at + PIECE], self.algorithm))
        self._rest += view[whole:]

    def update_zeros(self, count: int) -> None:
        """Take *count* zero bytes, in a time that hardly depends on how many there are."""
        self.size += count
        missing = -len(self._rest) % BLOCK_SIZE
        self._rest += bytes(min(missing, count))
        count -= missing
        if count < 0:
            return
        self._add(0, self._hash_blocks(self._rest, self.algorithm))
        blocks, count = divmod(count, BLOCK_SIZE)
        self._add_equal(0, self._hash_blocks(bytes(BLOCK_SIZE), self.algorithm), blocks)
        self._rest[:] = bytes(count)

    def _add_equal(self, number: int, one: bytes, count: int) -> None:
        """Append *one* hash so many times; a level gets no more of them than fill a few of its blocks."""
        per_block = BLOCK_SIZE // len(one)
        if count >= 2 * per_block:
            filled = len(self._levels[number]) // len(one) if number < len(self._levels) else 0
            self._add(number, one * (-filled % per_block))
            level = self._levels[number]
            self._add(number + 1, self._hash_blocks(level, self.algorithm))
            level.clear()
            blocks, count = divmod(count - -filled % per_block, per_block)
            self._add_equal(number + 1, self._hash_blocks(one * per_block, self.algorithm), blocks)
        self._add(number, one * count)

    def digest(self) -> bytes:
        """The raw digest of what has been fed so far; more may follow."""
        tail = self._hash_blocks(self._rest, self.algorithm)
        for number, level in enumerate(self._levels):
            tail = bytes(level) + tail
            if number + 1 < len(self._levels):
                tail = self._hash_blocks(tail, self.algorithm)
        return digest_of_level(tail, self.size, self.algorithm, self._hash_blocks)

    def id(self) -> ObjectId:
        """`digest` as the name of an object."""
        return ObjectId(self.digest())

    def _add(self, number: int, hashes: bytes) -> None:
        """Append to a level; a level that has filled several blocks hands their hashes to the next one."""
        if number == len(self._levels):
            self._levels.append(bytearray())
        level = self._levels[number]
        level += hashes
        # Not one block at a time: the native code hashes several as quickly as one.
        if len(level) >= 16 * BLOCK_SIZE:
            whole = len(level) - len(level) % BLOCK_SIZE
            above = self._hash_blocks(level[:whole], self.algorithm)
            del level[:whole]
            self._add(number + 1, above)


def digest(data: Buffer, algorithm: Algorithm) -> ObjectId:
    """The fs-verity digest of a file with the content *data*."""
    return ObjectId(_digest(data, algorithm))


def digest_many(items: Sequence[Buffer], algorithm: Algorithm) -> list[ObjectId]:
    """The digests of many files at once."""
    return ObjectId.unpack(b"".join([_digest(item, algorithm) for item in items]), algorithm)


def _digest(data: Buffer, algorithm: Algorithm) -> bytes:
    return digest_of_level(hash_blocks(data, algorithm), memoryview(data).nbytes, algorithm, hash_blocks)


def piece_hashes(data: Buffer, algorithm: Algorithm) -> bytes:
    """The share of one piece of a file in its digest, so that threads can hash one file together.

    A piece begins at a multiple of `PIECE` and is a whole number of `PIECE` long, except for the last one of the
    file.  The results, in order, go to `digest_from_pieces`.
    """
    return piece_of_level(hash_blocks(data, algorithm), algorithm, hash_blocks)


def digest_from_pieces(pieces: Sequence[bytes], size: int, algorithm: Algorithm) -> ObjectId:
    """The digest of a file of *size* bytes from the `piece_hashes` of all its pieces, in order.

    Raises:
        ValueError: the pieces do not add up to *size*.
    """
    return join_pieces(pieces, size, algorithm, hash_blocks)


# -- shared with the native code -----------------------------------------------------------------


def digest_of_level(level: bytes, size: int, algorithm: Algorithm, hash_blocks: HashBlocks) -> bytes:
    """The digest of a file of *size* bytes, given any whole level of its tree."""
    while len(level) > algorithm.digest_size:
        level = hash_blocks(level, algorithm)
    # An empty file has no blocks; its root is defined as zeros.
    root = level or bytes(algorithm.digest_size)
    return _HASHES[algorithm.digest_size](descriptor(algorithm, size, root)).digest()


def piece_of_level(level: bytes, algorithm: Algorithm, hash_blocks: HashBlocks) -> bytes:
    """The second level of a piece from its first.

    A single hash stays as it is: in a file of one block it is the root, and whether the file has more blocks is
    known to `join_pieces` only.
    """
    return level if len(level) <= algorithm.digest_size else hash_blocks(level, algorithm)


def join_pieces(pieces: Sequence[bytes], size: int, algorithm: Algorithm, hash_blocks: HashBlocks) -> ObjectId:
    """`digest_from_pieces` over either implementation of *hash_blocks*."""
    hashes = list(pieces)
    if size > BLOCK_SIZE and 0 < size % PIECE <= BLOCK_SIZE and len(b"".join(hashes[-1:])) == algorithm.digest_size:
        hashes[-1] = hash_blocks(hashes[-1], algorithm)  # one block alone in the last piece, see piece_of_level
    level = b"".join(hashes)
    covered = BLOCK_SIZE * (BLOCK_SIZE // algorithm.digest_size)
    if len(level) != -(-size // covered) * algorithm.digest_size:
        raise ValueError(f"{len(pieces)} pieces with {len(level)} bytes of hashes are not those of {size} bytes")
    return ObjectId(digest_of_level(level, size, algorithm, hash_blocks))
