"""The fs-verity digest over the native code: same names and meaning as in `_python`.

Can be imported only where the native module can.  All of it gives the interpreter lock away while it hashes;
the buffers must not change meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._native import _core
from ..digest import Algorithm, ObjectId
from . import _python
from ._python import PIECE, Buffer, descriptor

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


def hash_blocks(data: Buffer, algorithm: Algorithm) -> bytes:
    return _core.hash_blocks(data, algorithm.number)


class Hasher(_python.Hasher):
    _hash_blocks = staticmethod(hash_blocks)


def digest(data: Buffer, algorithm: Algorithm) -> ObjectId:
    return ObjectId(_core.digest_many((data,), algorithm.number))


def digest_many(items: Sequence[Buffer], algorithm: Algorithm) -> list[ObjectId]:
    return ObjectId.unpack(_core.digest_many(items, algorithm.number), algorithm)


def piece_hashes(data: Buffer, algorithm: Algorithm) -> bytes:
    return _python.piece_of_level(hash_blocks(data, algorithm), algorithm, hash_blocks)


def digest_from_pieces(pieces: Sequence[bytes], size: int, algorithm: Algorithm) -> ObjectId:
    return _python.join_pieces(pieces, size, algorithm, hash_blocks)
