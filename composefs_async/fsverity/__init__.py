"""The fs-verity digest of bytes, as the kernel would measure it; no file descriptors.

Owns the choice between the native code and its Python twin, which give the same results: `digest_many` of the
native code hashes many blocks side by side and without the interpreter lock.  Does not own ioctls (`_sys`) nor
the digest of files behind descriptors (`_repo`).

All functions block for the time of hashing, accept untrusted content, and keep memory flat for inputs of any size.
Blocks are 4096 bytes and there is no salt: composefs uses nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _native

if TYPE_CHECKING or _native.BACKEND == "python":
    from ._python import PIECE, Buffer, Hasher, descriptor, digest, digest_from_pieces, digest_many, piece_hashes
else:
    from ._compiled import PIECE, Buffer, Hasher, descriptor, digest, digest_from_pieces, digest_many, piece_hashes

__all__ = [
    "PIECE",
    "Buffer",
    "Hasher",
    "descriptor",
    "digest",
    "digest_from_pieces",
    "digest_many",
    "piece_hashes",
]
