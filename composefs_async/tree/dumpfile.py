"""Text as trees: reads dump files, composefs-dump(5), as mkcomposefs, composefs-info and composefs-rs write them.

Owns lines and what they make together.  Does not own single fields (`dumpfields`), writing (`dumpwriter`), nor whether
an image can hold the tree.

A line has eleven fields and then attributes, with one space between them::

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [NAME=VALUE]…

The two parsers that exist differ where input is unusual.  This one reads and refuses what mkcomposefs does, and means
by it the same, but for what cannot be meant: the last six lines of the table.

=============================  ==========================  ===========================  ==========================
input                          mkcomposefs                 composefs-rs                 here
=============================  ==========================  ===========================  ==========================
not UTF-8                      accepted                    refused                      accepted
empty line                     refused                     skipped                      refused
``\\r`` before the line end      part of the last field      dropped                      part of the last field
fields behind MTIME missing    taken as empty              refused                      taken as empty
a second line for a path       refused                     the later wins               refused
``/a//b``, ``a/b``             ``/a/b``                    refused                      ``/a/b``
name over 255 bytes            refused                     accepted                     refused
NUL in path, payload or key    ends it                     refused                      ends it
number over its range, signed  cut, wrapped                refused (but for ``+``)      cut, wrapped
negative time                  accepted                    refused                      accepted
socket                         accepted                    accepted since 0.9.0         accepted
hard link to a later line      accepted                    refused                      accepted
hard link to a link            accepted                    followed                     followed
mode bits beyond 07777         kept                        dropped                      kept, up to 16 bits
CONTENT and PAYLOAD            the content counts          the payload counts           the content counts
CONTENT not of length SIZE     refused                     accepted                     refused
no PAYLOAD, CONTENT, DIGEST    external without a path     sparse                       sparse: the same image
digest of an empty file        ignored                     refused                      ignored if malformed
content of non-files           ignored if of length SIZE   refused                      ignored if of length SIZE
digest of non-files            ignored                     refused                      ignored
device number of non-devices   ignored                     ignored                      ignored
SIZE of specials over 32 bits  makes the inode extended    ignored                      makes the inode extended
content over 512, 5000 bytes   accepted, refused           refused, refused             accepted, refused
symlink over 1024, 4095 bytes  accepted, refused           refused, refused             accepted, refused
PAYLOAD over 4095 bytes        refused                     ignored                      refused
space at the end               accepted                    refused                      accepted
attribute with an empty name   refused                     accepted                     refused
attribute named twice          the last counts             the greatest value counts    the last counts
nanoseconds over 10^9 - 1      kept, and no valid time     refused                      refused
hard link to a directory       accepted by mistake         refused                      refused
DIGEST of 128 digits           the first 64 count          SHA-512                      SHA-512
DIGEST of more digits than 64  the first 64 count          refused                      the first 64 count
DIGEST of fewer, or no digits  whatever is in memory       refused                      refused
SIZE that wraps around to 0    a file that cannot be read  refused                      refused when it is built
=============================  ==========================  ===========================  ==========================

An external file of size 0 stays one (the image writer decides what becomes of it).  Time and memory are linear in the
input, which may come from anywhere.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

from ..errors import DumpfileError
from .dumpfields import (
    CONTENT_MAX,
    LINK,
    MalformedError,
    parse_content,
    parse_mode,
    parse_path,
    parse_reference,
    parse_target,
    parse_text,
    parse_time,
    parse_u32,
    parse_u64,
    parse_unescaped,
    parse_xattrs,
    quoted,
)
from .inodes import NO_XATTRS, Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from .walk import find

__all__ = ["parse_dump"]

_NAME_MAX: Final = 255
_NEEDED: Final = 8
"""Fields that a line must have: up to the time."""
_STRETCH: Final = 1 << 15
_S_IFMT: Final = 0o170000
_S_IFREG: Final = stat.S_IFREG
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_BAD_NAMES: Final = (b"", b".", b"..")
_BACKSLASH: Final = ord("\\")
_SPACE: Final = ord(" ")

_T = TypeVar("_T")


def parse_dump(data: bytes | Iterable[bytes]) -> Directory:
    """The tree that a dump file describes.

    Args:
        data: the whole file, or its lines with or without line ends.

    Raises:
        DumpfileError: a line is malformed, or the lines do not make a tree.
    """
    lines = _split(data) if isinstance(data, bytes) else _checked(data)
    parser = _Parser()
    try:
        return parser.parse(lines)
    except MalformedError as error:
        raise DumpfileError(str(error), parser.line) from None


def _split(data: bytes) -> Iterable[bytes]:
    nul = data.find(b"\0")
    if nul >= 0:
        raise DumpfileError("a NUL byte", data.count(b"\n", 0, nul) + 1)
    return chain.from_iterable(_stretches(data))


def _stretches(data: bytes) -> Iterator[list[bytes]]:
    """The lines, some at a time: they stay in the processor's cache, and memory for all of them is not needed."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + _STRETCH)
        end = len(data.removesuffix(b"\n")) if end < 0 else end
        yield data[start:end].split(b"\n")
        start = end + 1


def _checked(lines: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines, 1):
        if b"\0" in line:
            raise DumpfileError("a NUL byte", number)
        yield line.removesuffix(b"\n")


class _Memo(dict[bytes, _T], Generic[_T]):
    """Parsed fields by their text: modes, owners, times and attributes repeat thousands of times."""

    __slots__ = ("parse",)

    def __init__(self, parse: Callable[[bytes], _T]) -> None:
        super().__init__()
        self.parse = parse

    def __missing__(self, text: bytes) -> _T:
        value = self[text] = self.parse(text)
        return value


class _Link(Inode):
    """Stands in for the inode that a hard link leads to, until all lines are read."""

    __slots__ = ("leads_to", "line", "name", "parent", "target")

    parent: Directory
    name: bytes

    def __init__(self, target: bytes, line: int) -> None:
        super().__init__(LINK, 0, 0, 0, 0)
        self.target, self.line = target, line
        self.leads_to: Inode | None = None


class _Parser:
    """Puts lines together; one use."""

    def __init__(self) -> None:
        self.line = 1
        self._directories: dict[bytes, Directory] = {}
        """By path; that of the root is empty."""
        self._links: list[_Link] = []
        self._modes, self._ids, self._times = _Memo(parse_mode), _Memo(parse_u32), _Memo(parse_time)
        self._xattr_sets = _Memo(parse_xattrs)

    def parse(self, lines: Iterable[bytes]) -> Directory:
        """The root of the tree.  External files, most of all lines, are dealt with right here: calls cost a fifth."""
        numbered = enumerate(lines, 1)
        root = directory = self._read_root(numbered)
        known: bytes | None = None
        modes, ids, times, xattr_sets = self._modes, self._ids, self._times, self._xattr_sets
        for self.line, line in numbered:
            fields = line.split(b" ", 10)
            if len(fields) != 11:
                fields = _padded(fields)
            path, size, mode_text, nlink, uid, gid, rdev, when, payload, content, digest = fields
            if _BACKSLASH in path:
                path = parse_text(path)
            above, _, name = path.rpartition(b"/")
            if above != known:
                above, directory = self._parent(above)
                known = above or None  # to a path without any slash the root is no parent: look each time
            children = directory.children
            if name in children or not 2 < len(name) <= _NAME_MAX:
                _check_name(name, children)
            mode = modes[mode_text]
            if content != b"-" or mode & _S_IFMT != _S_IFREG:
                self._add_other(above, directory, name, mode, fields)
                continue
            xattrs = NO_XATTRS
            if _SPACE in digest:
                digest, _, pairs = digest.partition(b" ")
                xattrs = xattr_sets[pairs]
            length, verity, where = parse_reference(size, payload, digest)
            # The device number of what is no device means nothing, but must be one.
            links, owner, group, _ = ids[nlink], ids[uid], ids[gid], ids[rdev]
            if length or verity or where:
                children[name] = ExternalFile(mode, links, owner, group, times[when], xattrs, length, verity, where)
            else:
                children[name] = InlineFile(mode, links, owner, group, times[when], xattrs)
        self._resolve(root)
        return root

    def _add_other(self, above: bytes, directory: Directory, name: bytes, mode: int, fields: list[bytes]) -> None:
        inode = directory.children[name] = self._inode(mode, fields)
        if type(inode) is Directory:
            self._directories[b"%b/%b" % (above, name)] = inode
        elif type(inode) is _Link:
            inode.parent, inode.name = directory, name
            self._links.append(inode)

    def _read_root(self, numbered: Iterator[tuple[int, bytes]]) -> Directory:
        for self.line, line in numbered:
            fields = line.split(b" ", 10)
            if len(fields) != 11:
                fields = _padded(fields)
            if fields[0] != b"/" or (mode := self._modes[fields[2]]) & _S_IFMT != stat.S_IFDIR:
                break
            root = self._inode(mode, fields)
            assert isinstance(root, Directory)
            self._directories[b""] = root
            return root
        raise MalformedError("the first line must be the directory /")

    def _inode(self, mode: int, fields: list[bytes]) -> Inode:
        """Of whatever is no external file."""
        _, size, _, nlink, uid, gid, rdev, when, payload, content, digest = fields
        if mode == LINK:
            return _Link(parse_target(payload), self.line)
        xattrs = NO_XATTRS
        if _SPACE in digest:
            digest, _, pairs = digest.partition(b" ")
            xattrs = self._xattr_sets[pairs]
        ids = self._ids
        links, owner, group, device = ids[nlink], ids[uid], ids[gid], ids[rdev]
        when_ns = self._times[when]
        kind, length = mode & _S_IFMT, parse_u64(size)
        # Of links only, which have none, is the content not bounded.
        maximum = length if kind == stat.S_IFLNK else CONTENT_MAX
        inline = b"" if content == b"-" else parse_content(content, size, maximum=maximum)
        if digest != b"-":
            parse_unescaped(digest)
        if kind == stat.S_IFLNK:
            return Symlink(mode, links, owner, group, when_ns, xattrs, parse_target(payload))
        if payload != b"-":
            parse_path(payload)
        if kind == _S_IFREG:
            return InlineFile(mode, links, owner, group, when_ns, xattrs, inline)
        if kind == stat.S_IFDIR:
            return Directory(mode, links, owner, group, when_ns, xattrs)
        special = Special(mode, links, owner, group, when_ns, xattrs, device if kind in _DEVICES else 0)
        special.size = length
        return special

    def _parent(self, above: bytes) -> tuple[bytes, Directory]:
        """The directory *above*, and its path with one slash before each name."""
        directory = self._directories.get(above)
        if directory is None:
            above = b"".join([b"/" + name for name in above.split(b"/") if name])
            directory = self._directories.get(above)
        if directory is None:
            raise MalformedError(f"there is no directory {quoted(above)} on an earlier line")
        return above, directory

    def _resolve(self, root: Directory) -> None:
        """Put inodes in place of what stands in for them: a link may lead to another, and to a later line."""
        marks: dict[Directory, set[bytes]] = {}
        for link in self._links:
            self.line = link.line
            link.parent.children[link.name] = self._final(root, link)
            marks.setdefault(link.parent, set()).add(link.name)
        for directory, names in marks.items():
            directory.links = frozenset(names)

    def _final(self, root: Directory, link: _Link) -> Inode:
        passed = [link]
        while (inode := passed[-1].leads_to or find(root, passed[-1].target)) is not None and type(inode) is _Link:
            if len(passed) > len(self._links):
                raise MalformedError(f"the hard link to {quoted(link.target)} leads to itself")
            passed.append(inode)
        if inode is None or type(inode) is Directory:
            raise MalformedError(f"there is no file {quoted(link.target)} for the hard link")
        for each in passed:
            each.leads_to = inode  # so that a long chain is walked once
        return inode


def _padded(fields: list[bytes]) -> list[bytes]:
    """The eleven fields of a line that ends early: those behind the time may be missing, which is as if empty."""
    if len(fields) < _NEEDED:
        raise MalformedError(f"{len(fields)} fields, at least {_NEEDED} are needed" if any(fields) else "an empty line")
    return fields + [b""] * (11 - len(fields))


def _check_name(name: bytes, children: dict[bytes, Inode]) -> None:
    if name in children:
        raise MalformedError(f"a second line for {quoted(name)}")
    if name in _BAD_NAMES or len(name) > _NAME_MAX:
        raise MalformedError(f"invalid name {quoted(name)}")
