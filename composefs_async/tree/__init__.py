"""Trees of inodes in memory, walks over them, and their text form.

Owns `inodes`, `walk`, `transform`, and dump files: `dumpfile` and `dumpfields` read, `dumpwriter` writes, `escapes`
serves both.  Does not own the binary form (`erofs`), nor how a tree is put together from layers (`oci`) or scanned
from a file system (`_repo`).  Nothing here does I/O.
"""

from __future__ import annotations

from .dumpfile import parse_dump
from .dumpwriter import format_entry, format_link, write_dump
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
    "format_entry",
    "format_link",
    "make_xattrs",
    "parse_dump",
    "write_dump",
]
