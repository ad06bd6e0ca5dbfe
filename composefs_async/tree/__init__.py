"""Trees of inodes in memory, walks over them, and their text form.

Owns `inodes`, `walk` and `dumpfile`.  Does not own the binary form (`erofs`), nor how a tree is put together from
layers (`oci`) or scanned from a file system (`_repo`).  Nothing here does I/O.
"""

from __future__ import annotations

from .inodes import NO_XATTRS, Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs, make_xattrs

__all__ = [
    "NO_XATTRS",
    "Directory",
    "ExternalFile",
    "InlineFile",
    "Inode",
    "Special",
    "Symlink",
    "Xattrs",
    "make_xattrs",
]
