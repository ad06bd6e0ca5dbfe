"""Which inodes an image has, in which order, and what stands in which directory.

Owns the walks, the one name that owns a hard-linked inode, and the refusal of trees that are none.  Does not own
bytes.  Trees may be as deep as they like: nothing recurses.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from ...errors import ErofsError
from ...tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from ...tree.walk import path_of
from ..format import DEPTH_MAX, FILE_TYPES, NAME_MAX
from .blocks import split_names

__all__ = ["Listing", "Plan", "breadth_first", "depth_first", "refuse", "types"]

_SPECIAL_TYPES = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
_KIND_TYPES: dict[type[Inode], tuple[int, ...]] = {
    Directory: (stat.S_IFDIR,),
    InlineFile: (stat.S_IFREG,),
    ExternalFile: (stat.S_IFREG,),
    Symlink: (stat.S_IFLNK,),
    Special: _SPECIAL_TYPES,
}


class Listing:
    """One directory: its names in byte order, and what they lead to."""

    __slots__ = (
        "bad_name",
        "cuts",
        "depth",
        "directory",
        "index",
        "inodes",
        "names",
        "parent",
        "start",
        "subdirectories",
        "tail",
        "whole",
    )

    directory: Directory
    parent: Listing | None
    names: list[bytes]
    bad_name: bytes | None
    """The first that no file can have."""
    inodes: list[Inode]
    subdirectories: int
    cuts: Sequence[int]
    tail: int
    index: int
    start: int
    whole: bool

    def __init__(self, directory: Directory, parent: Listing | None, children: dict[bytes, Inode]) -> None:
        self.directory = directory
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        """Of directories above it."""
        self.names = names = sorted(children)
        self.inodes = inodes = [children[name] for name in names]
        self.subdirectories = list(map(type, inodes)).count(Directory)
        text = b"".join(names)
        self.bad_name = _bad_name(names, text)
        self.cuts, self.tail = split_names(names, len(text))
        self.index = 0
        """Of the directory itself, in the order of inodes."""
        self.start = 0
        """Of the first child that it owns; layouts 0 and 1 put the others behind that."""
        self.whole = False
        """Whether it owns all its children, and they follow one another in the order of inodes."""


class Plan:
    """The order of inodes; *listings* is in the same order."""

    __slots__ = ("inodes", "linked", "listings", "places")

    listings: list[Listing]
    inodes: list[Inode]
    linked: dict[Inode, int]

    def __init__(self, listings: list[Listing], inodes: list[Inode], linked: dict[Inode, int]) -> None:
        self.listings = listings
        self.inodes = inodes
        self.linked = linked
        """How many names those inodes have that have several."""
        self.places: dict[Inode, int] = {}
        """Index of the inodes in every listing that is not whole."""

    def column(self, listing: Listing, values: list[int]) -> list[int]:
        """What *values*, which go by the order of inodes, say about each name of *listing*."""
        if listing.whole:
            return values[listing.start : listing.start + len(listing.names)]
        places = self.places
        return [values[places[inode]] for inode in listing.inodes]


def breadth_first(root: Directory, added: dict[bytes, Inode], obey_links: bool) -> Plan:
    """The order of layouts 0 and 1: every directory is followed by all that is in it.

    Args:
        added: further children of the root.
        obey_links: whether names in `Directory.links` own nothing.
    """
    listings = [Listing(root, None, root.children | added)]
    seen = {root}
    inodes: list[Inode] = [root]
    for listing in listings:
        _check_names(root, listing)
        listing.start, listing.whole = len(inodes), True
        inodes += listing.inodes
        if listing.subdirectories:
            listings += [Listing(child, listing, child.children) for child in _new_directories(root, listing, seen)]
    linked = _linked(inodes)
    if linked:
        inodes = _without_links(root, listings, linked, obey_links)
    plan = Plan(listings, inodes, linked)
    if linked:
        wanted = {inode for listing in listings if not listing.whole for inode in listing.inodes}
        plan.places = {inode: index for index, inode in enumerate(inodes) if inode in wanted}
    _number(plan)
    return plan


def depth_first(root: Directory) -> Plan:
    """The order of layout 2: every name is followed by all that is below it."""
    top = Listing(root, None, root.children)
    _check_names(root, top)
    listings = [top]
    inodes: dict[Inode, int] = {root: 1}
    seen = {root}
    open_listings: list[tuple[Listing, Iterator[Inode]]] = [(top, iter(top.inodes))]
    while open_listings:
        listing, rest = open_listings[-1]
        for inode in rest:
            inodes[inode] = inodes.get(inode, 0) + 1
            if type(inode) is Directory:
                _see(root, inode, seen)
                below = Listing(inode, listing, inode.children)
                _check_names(root, below)
                listings.append(below)
                open_listings.append((below, iter(below.inodes)))
                break
        else:
            open_listings.pop()
    plan = Plan(listings, list(inodes), {inode: count for inode, count in inodes.items() if count > 1})
    plan.places = {inode: index for index, inode in enumerate(plan.inodes)}
    _number(plan)
    return plan


def types(root: Directory, inodes: list[Inode]) -> list[int]:
    """What directory entries say about each inode, where `directory_block` wants it."""
    # Few distinct modes stand for all inodes, so each is looked at once.
    modes = [inode.mode for inode in inodes]
    for kind, mode in set(zip(map(type, inodes), modes, strict=True)):
        if stat.S_IFMT(mode) not in _KIND_TYPES.get(kind, ()) or mode >> 16:
            bad = next(inode for inode in inodes if type(inode) is kind and inode.mode == mode)
            refuse(root, bad, f"mode {mode:o} of a {kind.__name__}")
    by_mode = {mode: FILE_TYPES[stat.S_IFMT(mode)] << 16 for mode in set(modes)}
    return list(map(by_mode.__getitem__, modes))


def refuse(root: Directory, inode: Inode, reason: str) -> NoReturn:
    """Raise the error that *inode* cannot be in an image, with its path."""
    path = path_of(root, inode) or b"?"
    raise ErofsError(reason, None, path[:200].decode("utf-8", "backslashreplace"))


def _number(plan: Plan) -> None:
    directories = (index for index, inode in enumerate(plan.inodes) if type(inode) is Directory)
    for listing, index in zip(plan.listings, directories, strict=True):
        listing.index = index


def _see(root: Directory, directory: Directory, seen: set[Directory]) -> None:
    if directory in seen:
        raise ErofsError("a directory stands under two names", None)
    seen.add(directory)


def _new_directories(root: Directory, listing: Listing, seen: set[Directory]) -> Iterator[Directory]:
    for inode in listing.inodes:
        if type(inode) is Directory:
            _see(root, inode, seen)
            yield inode


def _check_names(root: Directory, listing: Listing) -> None:
    if listing.depth >= DEPTH_MAX:
        refuse(root, listing.directory, f"directories are nested deeper than {DEPTH_MAX}, and nobody would read it")
    if listing.bad_name is not None:
        refuse(root, listing.directory, f"a name that no file can have: {listing.bad_name[:300]!r}")


def _bad_name(names: list[bytes], text: bytes) -> bytes | None:
    """The first of *names*, which are sorted and together *text*, that no file can have."""
    if not names:
        return None
    long = len(text) > NAME_MAX and max(map(len, names)) > NAME_MAX
    # What is greater than b".." is none of the names that nothing can have.
    if not long and names[0] > b".." and not (_SLASH in text or _NUL in text):
        return None
    return next((name for name in names if name in _NO_NAMES or {*name} & {_NUL, _SLASH} or len(name) > NAME_MAX), None)


_NO_NAMES = (b"", b".", b"..")
_NUL, _SLASH = 0, ord("/")


def _linked(inodes: list[Inode]) -> dict[Inode, int]:
    if len(set(inodes)) == len(inodes):
        return {}
    return {inode: count for inode, count in Counter(inodes).items() if count > 1}


def _without_links(root: Directory, listings: list[Listing], linked: dict[Inode, int], obey_links: bool) -> list[Inode]:
    """Every inode once, at the name that owns it."""
    owners = _owners(root, linked, obey_links)
    inodes: list[Inode] = [root]
    for listing in listings:
        entries = zip(listing.names, listing.inodes, strict=True)
        own = [inode for name, inode in entries if inode not in linked or owners[inode] == (listing.directory, name)]
        listing.start, listing.whole = len(inodes), len(own) == len(listing.names)
        inodes += own
    return inodes


def _owners(root: Directory, linked: Iterable[Inode], obey_links: bool) -> dict[Inode, tuple[Directory, bytes]]:
    """Of each inode in *linked*, the first name in sorted pre-order; one that is no link if there is such a name."""
    found: dict[Inode, tuple[Directory, bytes]] = {}
    wanted = set(linked)
    passed: dict[Inode, tuple[Directory, bytes]] = {}
    pending: list[tuple[Directory, Iterator[tuple[bytes, Inode]]]] = [(root, iter(sorted(root.children.items())))]
    while pending:
        directory, entries = pending[-1]
        for name, inode in entries:
            if inode in wanted:
                chosen = passed if obey_links and name in directory.links else found
                chosen.setdefault(inode, (directory, name))
            elif type(inode) is Directory:
                pending.append((inode, iter(sorted(inode.children.items()))))
                break
        else:
            pending.pop()
    return passed | found
