"""Walks over a tree, and questions that need one.

Owns order and paths.  Does not own kinds of inodes (`inodes`) nor the forms of a tree.

Nothing here recurses, so a tree may be as deep as memory allows.  A directory must not stand under two names:
walks would visit it twice, and never end where it is inside itself; the image writer refuses such trees.
"""

from __future__ import annotations

from collections.abc import Iterator

from .inodes import Directory, Inode

__all__ = ["count_links", "directories", "find", "path_of", "split_path", "walk"]


def walk(root: Directory) -> Iterator[tuple[bytes, Inode]]:
    """Every name with its inode, the root (``/``) first, depth first in byte order of the names.

    A hard link comes once for each of its names.  Changing a directory after it was given out and before its
    first child was is safe.
    """
    yield b"/", root
    open_directories = [(b"/", iter(sorted(root.children.items())))]
    while open_directories:
        prefix, entries = open_directories[-1]
        for name, inode in entries:
            yield prefix + name, inode
            if isinstance(inode, Directory):
                open_directories.append((b"%b%b/" % (prefix, name), iter(sorted(inode.children.items()))))
                break
        else:
            open_directories.pop()


def directories(root: Directory) -> Iterator[Directory]:
    """Every directory, the root first and each before those inside it, otherwise in no particular order."""
    pending = [root]
    while pending:
        directory = pending.pop()
        yield directory
        pending += [child for child in directory.children.values() if isinstance(child, Directory)]


def split_path(path: bytes) -> list[bytes]:
    """The names in *path*; slashes around and between them count as one."""
    return [name for name in path.split(b"/") if name]


def find(root: Directory, path: bytes) -> Inode | None:
    """The inode at *path*, or None.  ``.`` and ``..`` are names like others, and symbolic links are not followed."""
    found: Inode | None = root
    for name in split_path(path):
        if not isinstance(found, Directory):
            return None
        found = found.children.get(name)
    return found


def path_of(root: Directory, inode: Inode) -> bytes | None:
    """The first path of *inode* in the order of `walk`, or None if the tree has it not.  Looks at the whole tree."""
    return next((path for path, found in walk(root) if found is inode), None)


def count_links(root: Directory) -> dict[Inode, int]:
    """What ``st_nlink`` of every inode should be: 2 and one for each subdirectory, or the number of names."""
    counts: dict[Inode, int] = {root: 2}
    for directory in directories(root):
        for child in directory.children.values():
            if isinstance(child, Directory):
                counts[directory] += 1
                counts[child] = 2
            else:
                counts[child] = counts.get(child, 0) + 1
    return counts
