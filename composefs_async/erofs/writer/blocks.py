"""How much room contents take, and the bytes of directories: what all layouts agree on.

Owns splitting into blocks and a tail, directory blocks and chunk maps.  Does not own where an inode lies
(`writer_classic`, `writer_flat`) nor attributes (`layout_xattrs`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from operator import or_
from struct import Struct
from typing import Final

from ..format import BLOCK_BITS, BLOCK_SIZE, CHUNK_BITS_MAX, DIRECTORY_TYPE, DIRENT_SIZE

__all__ = [
    "CHUNK_FORMATS",
    "DIRECTORY_ENTRY",
    "TAIL_MAX",
    "chunk_bits",
    "chunk_format",
    "directory_block",
    "pad",
    "split_names",
    "with_dots",
]

TAIL_MAX: Final = BLOCK_SIZE // 2
"""A longer rest of a directory, or of content in layouts 0 and 1, gets a block of its own."""
DIRECTORY_ENTRY: Final = DIRECTORY_TYPE << 16
"""The type of a directory entry as `directory_block` takes it: where it stands in the second half of a dirent."""

CHUNK_FORMATS: Final = [min(max(bits, BLOCK_BITS), CHUNK_BITS_MAX) - BLOCK_BITS for bits in range(65)]
"""What an inode says about its chunks, by the bit length of its size less one."""

_PADS: Final = [bytes(count) for count in range(64)]
_DOTS_COST: Final = 2 * DIRENT_SIZE + len(b".") + len(b"..")


def pad(count: int) -> bytes:
    """Zeros, fewer than a block."""
    return _PADS[count] if count < 64 else bytes(count)


def chunk_bits(size: int) -> int:
    """The binary logarithm of the smallest chunk that covers *size*, or of the largest chunk."""
    return chunk_format(size) + BLOCK_BITS


def chunk_format(size: int) -> int:
    """What an inode says about the chunks of a file of *size* bytes."""
    return CHUNK_FORMATS[(size - 1).bit_length()]


def with_dots(names: list[bytes]) -> tuple[list[bytes], int, int]:
    """Sorted *names* with ``.`` and ``..``, and where to insert these two, in this order, into other columns."""
    if not names or names[0] > b"..":
        return [b".", b"..", *names], 0, 1
    dot = bisect_left(names, b".")
    names = [*names[:dot], b".", *names[dot:]]
    dots = bisect_left(names, b"..")
    return [*names[:dots], b"..", *names[dots:]], dot, dots


def split_names(names: list[bytes], length: int) -> tuple[Sequence[int], int]:
    """Cut the entries of a directory into blocks.

    Args:
        names: sorted, without ``.`` and ``..``, which are reckoned with.
        length: bytes in all of them together.

    Returns:
        For each full block, how many of the names *with* dots come before its end; and the bytes of the tail.
    """
    total = DIRENT_SIZE * len(names) + length + _DOTS_COST
    if total <= TAIL_MAX:
        return (), total
    cuts, used = [], 0
    dotted = with_dots(names)[0]
    for index, name in enumerate(dotted):
        cost = DIRENT_SIZE + len(name)
        if used + cost > BLOCK_SIZE:
            cuts.append(index)
            used = 0
        used += cost
    if used > TAIL_MAX:
        cuts.append(len(dotted))
        used = 0
    return cuts, used


@lru_cache(512)
def _pairs(count: int) -> Struct:
    # Nid, and the other half of a dirent as one number: two values to pack are faster than four.
    return Struct("<" + "QI" * count)


def directory_block(names: list[bytes], nids: list[int], types: list[int]) -> bytes:
    """Dirents and names of one block or tail, not padded.

    Args:
        types: shifted as in `DIRECTORY_ENTRY`.
    """
    count = len(names)
    offsets = accumulate(map(len, names), initial=DIRENT_SIZE * count)
    pairs = nids * 2
    pairs[::2] = nids
    # Offsets stay below 2^16, so that the type can be joined to them.
    pairs[1::2] = map(or_, types, offsets)
    return _pairs(count).pack(*pairs) + b"".join(names)
