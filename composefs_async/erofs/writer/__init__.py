"""Trees as EROFS images, byte for byte as mkcomposefs and composefs-rs write them.

Owns the choice of layout, and the form in which an image leaves.  Does not own the layouts (`writer_classic`,
`writer_flat`), nor where images are kept.

The same tree gives the same bytes, on every machine.  Nothing here does I/O or looks at objects.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

from ...digest import Algorithm
from ...errors import ErofsError
from ...tree.inodes import Directory, Inode, Special
from ...tree.walk import directories
from .base import ImageWriter
from .v1 import C_RULES, RUST_RULES, ClassicImage
from .v2 import FlatImage
from .xattrs import Pairs

__all__ = ["Dialect", "build_image", "choose_version", "image_pieces", "stored_attributes"]

_VERSIONS: Final = (0, 1, 2)
_NEWEST_OF_C: Final = 1


class Dialect(enum.Enum):
    """Whose reading of layouts 0 and 1 counts; layout 2 has only one.

    They give the same image unless the tree has one of these:

    ==================================  =================================  ===================================
    tree                                C                                  RUST
    ==================================  =================================  ===================================
    link counts other than the true     `Inode.nlink`                      counted
    hard links                          `Directory.links` owns nothing     the first name in sorted pre-order
    attribute ``system.posix_acl_accessX``  no ACL                         an ACL
    over 128 shared attributes          the rest is inline                 refused beyond 255
    payload other than the canonical    the redirect                       ignored where there is a digest
    external file of no bytes           an empty file                      external
    whiteout ``/00`` to ``/ff``         escaped                            taken for one that is added anyway
    time before 1970                    may be the build time              counts as the largest
    whiteout with several names         accepted                           refused
    attributes over 32767 bytes         refused                            accepted
    ==================================  =================================  ===================================

    In both the marks of a whiteout, and of the directory it is in, replace attributes of the same names.  mkcomposefs
    means to do that too, but counts the bytes wrongly and refuses if one was longer; composefs-rs stores it twice.
    """

    C = "mkcomposefs"
    RUST = "composefs-rs"


def build_image(
    root: Directory,
    algorithm: Algorithm = Algorithm.SHA256,
    version: int = 1,
    *,
    dialect: Dialect = Dialect.RUST,
) -> bytes:
    """The image of the tree below *root*.

    Args:
        algorithm: of all digests in the tree.
        version: of the layout: 0, 1 (mkcomposefs, and composefs-rs by default) or 2 (composefs-rs before 2026).

    Raises:
        ErofsError: no image can hold the tree; its *name* is the path of what is in the way.
    """
    return b"".join(image_pieces(root, algorithm, version, dialect=dialect))


def image_pieces(
    root: Directory,
    algorithm: Algorithm = Algorithm.SHA256,
    version: int = 1,
    *,
    dialect: Dialect = Dialect.RUST,
) -> Iterator[bytes]:
    """Write an image in pieces, usually of some hundred kilobytes, which together are a multiple of 4096 bytes.

    Beside the tree this needs less than a kilobyte of memory for each inode.
    The tree must stay as it is until the last piece is out.  Nearly everything that can be wrong with it is found
    before the first piece, but numbers that do not fit into their fields only where they are written.
    """
    return _writer(root, algorithm, version, dialect).pieces()


def stored_attributes(root: Directory, algorithm: Algorithm, version: int) -> dict[Inode, Pairs]:
    """The attributes of every inode under the names they have in an image.

    Those stored with the inode come before shared ones.  The overlay attributes of most external files, which follow
    from their digests, are left out.

    Raises:
        ErofsError: as `build_image`.
    """
    writer = _writer(root, algorithm, version, Dialect.C)
    columns = zip(writer.plan.inodes, writer.attributes.shapes, strict=True)
    return {inode: [*shape.counted(shape.inline), *shape.counted(shape.shared)] for inode, shape in columns}


def choose_version(root: Directory, minimum: int | None = None, maximum: int | None = None) -> int:
    """The layout that mkcomposefs takes for ``--min-version`` and ``--max-version``; None is an option not given.

    It is the smallest, or 1 if the tree has a whiteout and the largest allows it.

    Raises:
        ErofsError: mkcomposefs has no such layout.
    """
    if minimum is None and maximum is None:
        minimum, maximum = 0, _NEWEST_OF_C
    minimum, maximum = minimum or 0, maximum or 0
    if not (0 <= minimum <= _NEWEST_OF_C and 0 <= maximum <= _NEWEST_OF_C):
        raise ErofsError(f"there is no layout {max(minimum, maximum)}, only 0 and 1", None)
    if minimum == 0 and maximum == 1 and _has_whiteout(root):
        return 1
    return minimum


def _writer(root: Directory, algorithm: Algorithm, version: int, dialect: Dialect) -> ImageWriter:
    if version not in _VERSIONS:
        raise ErofsError(f"there is no layout {version}, only 0, 1 and 2", None)
    if version == 2:
        return FlatImage(root, algorithm)
    return ClassicImage(root, version, C_RULES if dialect is Dialect.C else RUST_RULES, algorithm)


def _has_whiteout(root: Directory) -> bool:
    return any(
        isinstance(inode, Special) and inode.is_whiteout
        for directory in directories(root)
        for inode in directory.children.values()
    )
