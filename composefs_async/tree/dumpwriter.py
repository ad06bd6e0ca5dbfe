"""Trees as text: the lines of a dump file, composefs-dump(5).

Owns the canonical form.  Does not own reading (`dumpfile`).

Three programs write dump files, and not alike; this is the form of composefs-rs 0.9.0: directories have size 0,
link counts are those of the tree, and a hard link is a line with nothing but its target, which is the first name
in sorted order.  ``composefs-info dump`` repeats the fields of the inode on such a line; both forms are read
everywhere.  What cannot be told from the form of composefs-rs is written so that it is read back as it was: an
object that nothing verifies keeps its missing digest, and a verified one its unusual path.
"""

from __future__ import annotations

from collections.abc import Iterator

from .escapes import escape, escape_pair_part, optional
from .inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs
from .walk import count_links, walk

__all__ = ["format_entry", "format_link", "write_dump"]

_SECOND = 1_000_000_000


def write_dump(root: Directory) -> Iterator[bytes]:
    """The lines of the dump file, each with its line end, parents before their children."""
    counts = count_links(root)
    paths: dict[Inode, bytes] = {}
    for path, inode in walk(root):
        nlink = counts[inode]
        if nlink > 1 and not isinstance(inode, Directory):
            first = paths.setdefault(inode, path)
            if first is not path:
                yield format_link(path, first)
                continue
        yield format_entry(path, inode, nlink)


def format_entry(path: bytes, inode: Inode, nlink: int) -> bytes:
    """One line for *inode*, with the line end.

    Args:
        nlink: printed instead of the inode's own.
    """
    size, payload, content, digest = _body(inode)
    seconds, nanoseconds = divmod(inode.mtime_ns, _SECOND)
    rdev = inode.rdev if isinstance(inode, Special) else 0
    return b"%b %d %o %d %d %d %d %d.%d %b %b %b%b\n" % (
        escape(path),
        size,
        inode.mode,
        nlink,
        inode.uid,
        inode.gid,
        rdev,
        seconds,
        nanoseconds,
        payload,
        content,
        digest,
        _pairs(inode.xattrs) if inode.xattrs else b"",
    )


def format_link(path: bytes, target: bytes) -> bytes:
    """One line for a further name of the inode at *target*, with the line end."""
    return b"%b 0 @120000 - - - - 0.0 %b - -\n" % (escape(path), escape(target))


def _body(inode: Inode) -> tuple[int, bytes, bytes, bytes]:
    """Size, payload, content and digest, the last three ready to print."""
    if isinstance(inode, ExternalFile):
        return inode.size, optional(inode.path), b"-", inode.digest.hex().encode() if inode.digest else b"-"
    if isinstance(inode, InlineFile):
        return len(inode.content), b"-", optional(inode.content), b"-"
    if isinstance(inode, Symlink):
        return len(inode.target), escape(inode.target), b"-", b"-"
    return 0, b"-", b"-", b"-"


def _pairs(xattrs: Xattrs) -> bytes:
    return b"".join([b" %b=%b" % (escape_pair_part(name), escape_pair_part(value)) for name, value in xattrs])
