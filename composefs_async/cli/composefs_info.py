"""``composefs-info``: what is in image files, with the options and output of the C program.

It is called as a command of ``composefs-async``, or by its own name.  Beyond the C program it reads images with
SHA-512 and of layout 2, and has ``--algorithm`` for ``measure-file``, which gives the digest that the kernel has for
empty files.
"""

from __future__ import annotations

import getopt
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ..digest import Algorithm
from ..errors import ErofsError
from ..tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from .compat_options import complain, parse, parse_algorithm, run_program
from .output import print_bytes, printable
from .sources import algorithm_of, read_image

__all__ = ["main"]

_USAGE: Final = (
    "usage: composefs-info [--basedir=path] [--filter=name] [--algorithm=name] "
    "[ls|objects|dump|missing-objects|measure-file] IMAGES..."
)
_NAME: Final = "composefs-info"
_SECOND: Final = 1_000_000_000
_OPAQUE: Final = (b"trusted.overlay.opaque", b"user.overlay.opaque")

Pairs = Sequence[tuple[bytes, bytes]]


def main(arguments: list[str]) -> int:
    """Run the program; returns its exit code."""
    return run_program(_NAME, lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    try:
        options, rest = parse(arguments, ["basedir=", "filter=", "algorithm=", "help"])
    except getopt.GetoptError as error:
        complain(f"{_NAME}: {error.msg}", _USAGE)
    given = dict(options)
    if "help" in given:
        print_bytes([f"{_USAGE}\n".encode()])
        return
    filters = [os.fsencode(value) for name, value in options if name == "filter"]
    if bad := next((name for name in filters if b"/" in name), None):
        complain(f"{_NAME}: Filter must be a single name: {printable(os.fsdecode(bad))}")
    if not rest:
        complain("No command specified", _USAGE)
    command, *paths = rest
    algorithm = parse_algorithm(given.get("algorithm", "sha256"))
    if command not in {"ls", "dump", "objects", "missing-objects", "measure-file"}:
        complain(f"{_NAME}: Unknown command '{printable(command)}'")
    if not paths:
        complain("No files specified" if command == "measure-file" else "No image path specified", _USAGE)
    _command(command, paths, filters, given.get("basedir"), algorithm)


def _command(command: str, paths: list[str], filters: list[bytes], basedir: str | None, algorithm: Algorithm) -> None:
    if command == "measure-file":
        for path in paths:
            _measure(path, algorithm)
    elif command in {"ls", "dump"}:
        for path in paths:
            print_bytes((_ls if command == "ls" else _dump)(*_load(path), filters))
    else:
        payloads = {path for image in paths for path in _payloads(_filtered(_load(image)[0], filters))}
        wanted = _missing(payloads, basedir) if command == "missing-objects" else payloads
        print_bytes(path + b"\n" for path in sorted(wanted))


def _load(path: str) -> tuple[Directory, int]:
    """The tree of the image at *path*, and its layout."""
    from ..erofs.reader.superblock import parse_superblock
    from ..erofs.reader.tree import image_to_tree

    try:
        content = read_image(path)
    except OSError as error:
        complain(f"{_NAME}: Failed to open '{printable(path)}': {error.strerror}")
    try:
        return image_to_tree(content), parse_superblock(content).version
    except ErofsError as error:
        complain(f"{_NAME}: Failed to load '{printable(path)}': {printable(str(error))}")


def _filtered(root: Directory, filters: list[bytes]) -> Directory:
    """Without what is at the top and not among *filters*, if there are any."""
    if filters:
        root.children = {name: child for name, child in root.children.items() if name in filters}
    return root


# -- objects -----------------------------------------------------------------------------------


def _payloads(root: Directory) -> Iterator[bytes]:
    from ..tree.walk import walk

    return (inode.path for _, inode in walk(root) if isinstance(inode, ExternalFile) and inode.path)


def _missing(payloads: set[bytes], basedir: str | None) -> Iterator[bytes]:
    try:
        fd = os.open("." if basedir is None else basedir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        complain(f"{_NAME}: Can't open basedir `{printable(basedir or '')}`: {error.strerror}")
    try:
        return iter([path for path in payloads if not os.access(path.lstrip(b"/"), os.F_OK, dir_fd=fd)])
    finally:
        os.close(fd)


def _measure(path: str, algorithm: Algorithm) -> None:
    from .._repo.scan.content import measure_file

    try:
        found = measure_file(path, algorithm)
    except OSError as error:
        complain(f"{_NAME}: Failed to open '{printable(path)}': {error.strerror}")
    print_bytes([f"{found}\n".encode()])


# -- lists -------------------------------------------------------------------------------------


def _ls(root: Directory, _version: int, filters: list[bytes]) -> Iterator[bytes]:
    from ..tree.walk import walk

    seen = set[Inode]([root])
    for path, inode in walk(_filtered(root, filters)):
        if inode is not root:
            # Further names of a file are no more than names here.
            yield _with_spaces(path) + (b"" if inode in seen else _what(inode)) + b"\n"
        seen.add(inode)


def _what(inode: Inode) -> bytes:
    if isinstance(inode, Directory):
        return b"/\t"
    if isinstance(inode, Symlink):
        return b"\t-> " + _escaped(inode.target)
    if isinstance(inode, ExternalFile) and inode.path:
        return b"\t@ " + _escaped(inode.path)
    return b""


def _dump(root: Directory, version: int, filters: list[bytes]) -> Iterator[bytes]:
    from ..tree.walk import walk

    sizes, stored = _directory_sizes(version, root), _stored_attributes(version, root)
    root_size = sizes(root)
    seen: dict[Inode, bytes] = {}
    for path, inode in walk(_filtered(root, filters)):
        size = root_size if inode is root else sizes(inode) if isinstance(inode, Directory) else None
        first = None if isinstance(inode, Directory) else seen.setdefault(inode, path)
        yield _line(path, inode, stored(inode), size, None if first is path else first)


def _directory_sizes(version: int, root: Directory) -> Callable[[Inode], int]:
    """What images of *version* state as the size of directories, which follows from the names in them."""
    from ..erofs.format import BLOCK_SIZE
    from ..erofs.reader.walk import STUB_NAMES
    from ..erofs.writer.blocks import split_names

    def size(inode: Inode) -> int:
        assert isinstance(inode, Directory)
        added = STUB_NAMES if inode is root and version < 2 else frozenset[bytes]()
        names = sorted({*inode.children, *added})
        cuts, tail = split_names(names, sum(map(len, names)))
        return BLOCK_SIZE * len(cuts) + tail

    return size


def _stored_attributes(version: int, root: Directory) -> Callable[[Inode], Pairs]:
    """Return what gives attributes as the C program prints them.

    Those stored with an inode come before shared ones, and opaque directories that hold whiteouts have their mark.
    """
    from ..erofs.format import ESCAPED_OVERLAY_PREFIX, OVERLAY_PREFIX
    from ..erofs.writer import stored_attributes

    try:
        found = stored_attributes(root, algorithm_of(root) or Algorithm.SHA256, version)
    except ErofsError:  # an image of composefs-rs that mkcomposefs would not make
        return lambda inode: inode.xattrs

    def stored(inode: Inode) -> Pairs:
        own = dict(inode.xattrs)
        pairs: list[tuple[bytes, bytes]] = []
        for stored_name, value in found[inode]:
            escaped = stored_name.startswith(ESCAPED_OVERLAY_PREFIX)
            if stored_name.startswith(OVERLAY_PREFIX) and not escaped:
                continue
            name = OVERLAY_PREFIX + stored_name.removeprefix(ESCAPED_OVERLAY_PREFIX) if escaped else stored_name
            if name in own or name in _OPAQUE:
                pairs.append((name, value))
        return pairs

    return stored


def _line(path: bytes, inode: Inode, xattrs: Pairs, size: int | None, first: bytes | None) -> bytes:
    """As `tree.dumpwriter` has it, but for sizes of directories, and all fields for hard links too."""
    from ..tree.escapes import escape, escape_pair_part, optional

    seconds, nanoseconds = divmod(inode.mtime_ns, _SECOND)
    payload, content, digest = b"", b"", b""
    if isinstance(inode, ExternalFile):
        size, payload, digest = inode.size, inode.path, (inode.digest or b"").hex().encode()
    elif isinstance(inode, InlineFile):
        size, content = len(inode.content), inode.content
    elif isinstance(inode, Symlink):
        size, payload = len(inode.target), inode.target
    fields = b"%b %d %b%o %d %d %d %d %d.%d %b %b %b" % (
        *(escape(path), size or 0, b"@" if first else b"", inode.mode, inode.nlink, inode.uid, inode.gid),
        *(inode.rdev if isinstance(inode, Special) else 0, seconds, nanoseconds),
        *(optional(first or payload), optional(content), digest or b"-"),
    )
    pairs = [b" %b=%b" % (escape_pair_part(name), escape_pair_part(value)) for name, value in xattrs]
    return fields + b"".join(pairs) + b"\n"


def _escaped(text: bytes) -> bytes:
    """*text* escaped, but no lone dash, which means nothing here."""
    from ..tree.escapes import escape

    return escape(b"/" + text)[1:]


def _with_spaces(path: bytes) -> bytes:
    """*path* escaped, but for spaces."""
    return re.sub(rb"[^ ]+", lambda part: _escaped(part[0]), path)
