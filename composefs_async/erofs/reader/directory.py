"""Names in a directory of an image: decodes its data blocks and its inline tail, and checks every rule of their form.

Owns dirents (linux/fs/erofs/erofs_fs.h, ``struct erofs_dirent``).  Does not own where the data lies, nor what the
named inodes are: that is `reader_nodes`.

The kernel searches a directory by halving, so names that are out of order can be listed but not opened, and a
name that stands twice can be opened as only one of the two.  Both are refused here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from ...errors import ErofsError
from ..format import DIRECTORY_TYPE, DIRENT_SIZE, NAME_MAX, dirents

__all__ = ["Listing", "parse_listing"]

_DOT: Final = b"."
_DOTDOT: Final = b".."
_DOTS: Final = [_DOT, _DOTDOT]
_DOTS_TYPES: Final = [DIRECTORY_TYPE, DIRECTORY_TYPE]


@dataclass(slots=True)
class Listing:
    """The entries of one directory in byte order of their names, three columns of the same length."""

    names: list[bytes]
    nids: list[int]
    types: list[int]
    """Kinds that the entries claim their inodes to be (``EROFS_FT_*``)."""

    def take(self, name: bytes, nid: int, offset: int) -> None:
        """Remove the entry ``.`` or ``..``, which must be there, be a directory and lead to *nid*."""
        at = bisect_left(self.names, name)
        if at == len(self.names) or self.names[at] != name:
            raise ErofsError(f"a directory has no entry {name.decode()!r}", offset)
        if self.nids[at] != nid:
            raise ErofsError(f"{name.decode()!r} leads to inode {self.nids[at]}, not to {nid}", offset)
        if self.types[at] != DIRECTORY_TYPE:
            raise ErofsError(f"{name.decode()!r} is not marked as a directory", offset)
        del self.names[at], self.nids[at], self.types[at]


def parse_listing(pieces: Iterable[tuple[int, bytes]], nid: int, parent: int, offset: int) -> Listing:
    """All entries but ``.`` and ``..`` of the directory *nid*.

    Args:
        pieces: each block and the tail, with its offset in the image.
        parent: the inode that ``..`` must lead to.
        offset: of the directory's inode, for errors about the whole.
    """
    listing = Listing([], [], [])
    for at, block in pieces:
        _parse_block(block, at, listing)
    names = listing.names
    if sorted(names) != names or len(set(names)) < len(names):
        raise ErofsError(f"names are not in order, or not unique: {_out_of_order(names)!r}", offset)
    if names[:2] == _DOTS and listing.nids[:2] == [nid, parent] and listing.types[:2] == _DOTS_TYPES:
        del names[:2], listing.nids[:2], listing.types[:2]
    else:  # a name comes before them, or something is wrong
        listing.take(_DOTDOT, parent, offset)
        listing.take(_DOT, nid, offset)
    return listing


def _parse_block(block: bytes, at: int, listing: Listing) -> None:
    """Append the entries of one block: an array of dirents, the first of which tells its length, then the names."""
    if len(block) < DIRENT_SIZE:
        raise ErofsError(f"a directory block of {len(block)} bytes holds no entry", at)
    first = int.from_bytes(block[8:10], "little")
    count, rest = divmod(first, DIRENT_SIZE)
    if rest or not count or first > len(block):
        raise ErofsError(f"names begin at {first} in a directory block of {len(block)} bytes", at)
    columns = dirents(count).unpack_from(block)
    starts = columns[1::3]
    # The last name ends where the zero fill begins.
    text = block[first:].rstrip(b"\0")
    ends = (*starts[1:], first + len(text))
    # Every name starts where the one before ends, so one look at the whole stretch sees all of them, and an
    # offset that goes back or leaves the block makes some name empty.
    names = [block[start:end] for start, end in zip(starts, ends, strict=True)]
    if not all(names) or b"/" in text or b"\0" in text or len(max(names, key=len)) > NAME_MAX:
        raise ErofsError(f"an invalid name among {_shortened(names)}", at)
    listing.names += names
    listing.nids += columns[::3]
    listing.types += columns[2::3]


def _out_of_order(names: list[bytes]) -> bytes:
    return next(name for before, name in zip(names, islice(names, 1, None), strict=False) if before >= name)


def _shortened(names: list[bytes]) -> str:
    bad = [name for name in names if not name or b"/" in name or b"\0" in name or len(name) > NAME_MAX]
    return repr([name[:40] for name in bad[:3]] or "directory entries")
