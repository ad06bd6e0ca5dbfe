"""The tree that the layers of an image make together.

Owns what paths, whiteouts, opaque directories and hard links of a layer mean, and what replaces what.  Does not own
reading layers (`tar.members`), kinds of inodes nor the transformation before an image is made (`tree`).

The result is that of composefs-rs for every image that it accepts and that follows the OCI specification
(image-spec, layer.md).  Two things differ.  Whiteouts hide what lower layers brought, wherever in their layer they
stand, and never an entry of their own layer (`TreeBuilder.differences`).  A directory entry whose path ends in ``..``
says nothing about the root.

What composefs-rs refuses is read as container engines and overlayfs show it:

* Parent directories that no layer lists are made, with mode 0755, owner 0:0 and time 0.
* ``..`` inside a path takes away the name before it, and never leaves the root.
* An entry below a symbolic link of its own layer stands where the link leads to, inside the root.  Below a link or
  file of a lower layer it makes a directory of it.  Targets of hard links are found through any link.
* Whiteouts below what is no directory hide nothing.
* Names that begin with ``.wh..wh.`` were the business of AUFS: hard links to them and into them are followed, and
  nothing of them is in the tree.

All input is untrusted: nothing recurses, and what is made without having been listed is bounded, as are the steps
through symbolic links.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn, TypeAlias

from ..digest import ObjectId
from ..errors import ComposefsError, OciError
from ..tree.inodes import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from ..tree.transform import XattrFilter, settle_links, transform_for_oci
from .entry_paths import EMPTY_NAMES, names_of, shown
from .tar.members import EntryType, TarEntry
from .tar.sparse import SparseContent

__all__ = ["TreeBuilder", "XattrFilter", "tree_from_layers"]

_DOT: Final = ord(".")
_WHITEOUT: Final = b".wh."
_RESERVED: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_NO_NAMES: Final = EMPTY_NAMES | {b".."}
_PATH_MAX: Final = 4096  # linux/limits.h; no program could have made a longer path in one piece
_MAX_UNLISTED: Final = 1 << 18
"""Directories that are made because something is in them.  An entry of a few kilobytes can ask for 2,000."""
_MAX_LINKS: Final = 40
"""Symbolic links on the way to one entry, as many as Linux follows."""
_MAX_STEPS: Final = 1 << 22
"""Names in the targets of all symbolic links that one layer makes us follow; each link can have 2,000."""
_OWN_WHITEOUT: Final = "composefs-rs 0.9.0 lets the whiteout {} hide what its own layer has brought"
"""Bytes of a path that an error shows."""

_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
_FILE, _DIRECTORY, _SYMLINK, _HARDLINK = (
    EntryType.FILE,
    EntryType.DIRECTORY,
    EntryType.SYMLINK,
    EntryType.HARDLINK,
)
_FILE_BITS, _DIRECTORY_BITS, _SYMLINK_BITS = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK

SparseFinder: TypeAlias = Callable[[SparseContent], bytes | ObjectId]

_Place = tuple[Directory, dict[bytes, Inode], set[bytes]]
"""A directory, its children, and the names in it that the current layer brought."""


class _Way(enum.Enum):
    """For what a path is followed."""

    ENTRY = enum.auto()
    """To put an entry there; directories are made."""
    WHITEOUT = enum.auto()
    """To hide what is there; no link is followed."""
    TARGET = enum.auto()
    """To link to what is there."""


def tree_from_layers(
    layers: Iterable[Iterable[TarEntry]],
    xattrs: XattrFilter | None = XattrFilter.ALLOWLIST_ONLY,
    *,
    sparse: SparseFinder | None = None,
) -> Directory:
    """The root of the tree that *layers*, the lowest first, make together.  Blocks as reading them does.

    Args:
        xattrs: which extended attributes stay; None leaves the tree as the layers have it, without
            `transform_for_oci`.
        sparse: as for `TreeBuilder`.

    Raises:
        OciError: a layer contradicts itself or those below it; the message names the entry.
    """
    builder = TreeBuilder(sparse)
    for layer in layers:
        builder.add_layer(layer)
    return builder.finish(xattrs)


MAX_MEMBERS = 1 << 22
"""Of all layers of an image together."""


class TreeBuilder:
    """Takes one layer after the other.  After an error the tree is of no use.

    Args:
        sparse: finds out what a sparse file contains, as `sparse_contents.SparseContents.find` does, which stores it,
            too.  Without it such files are refused.
        max_members: of all layers together, each of which takes some 0.75 KiB of memory.
    """

    _reserved: bytes = _RESERVED
    """With what names begin that are no whiteouts and not in the tree."""

    def __init__(self, sparse: SparseFinder | None = None, max_members: int = MAX_MEMBERS) -> None:
        self._layer, self._sparse = "", sparse
        self._members, self._max_members = 0, max_members
        self._root = _plain_directory()
        self._own: dict[Directory, set[bytes]] = {}
        self._places: dict[bytes, _Place] = {}
        """Parents by their path as entries spell it, as long as no directory goes away."""
        self._cleared: set[Directory] = set()
        """What an opaque marker has been applied to; another one of the same layer finds nothing to do."""
        self._shadows: dict[Directory, Directory] = {}
        """What has a reserved name, by the directory that would hold it."""
        self._followed = False
        """A symbolic link stands on the way to one of the places."""
        self._unlisted = self._steps = 0
        self.differences: dict[str, str] = {}
        """Where and why composefs-rs 0.9.0 first makes something else of a layer, by the layer's name."""

    def add_layer(self, entries: Iterable[TarEntry], layer: str = "layer") -> None:
        """Put *entries* over what is there, in their order.

        Args:
            layer: its name, for errors.

        Raises:
            OciError
        """
        self.begin_layer(layer)
        self.add(entries)

    def begin_layer(self, layer: str) -> None:
        """What `add` brings from now on belongs to the next layer."""
        self._layer, self._own, self._cleared, self._steps = layer, {}, set(), 0
        self._forget_places()

    def _counted(self, entries: Iterable[TarEntry]) -> Iterator[TarEntry]:
        count, most = self._members, self._max_members
        for count, entry in enumerate(entries, count + 1):  # noqa: B020
            if count > most:
                raise OciError(self._layer, f"with it the image has more than {most} members, which is the limit")
            yield entry
        self._members = count

    def add(self, entries: Iterable[TarEntry]) -> None:
        """Put the next *entries* of the current layer over what is there.

        Raises:
            OciError
        """
        places = self._places.get
        for entry in self._counted(entries):
            path, kind, mode, uid, gid, size, mtime_ns, _, _, xattrs, content, _ = entry
            prefix, _, name = path.rpartition(b"/")
            if not name or name[0] == _DOT:
                if name in _NO_NAMES:
                    prefix, name = self._plain_path(entry)
                    if not name:
                        continue
                if name[:4] == _WHITEOUT:
                    if name[:8] != self._reserved or name == _OPAQUE:
                        self._hide(prefix, name, path)
                        continue
                    prefix = self._shadow_prefix(prefix, path)
            _, children, own = places(prefix) or self._parent(prefix, path)
            old = children.get(name)
            new: Inode
            if kind is _FILE:
                if isinstance(content, ObjectId):
                    new = ExternalFile(_FILE_BITS | mode, 1, uid, gid, mtime_ns, xattrs, size, content)
                elif isinstance(content, SparseContent):
                    new = self._sparse_file(entry, content)
                else:
                    new = InlineFile(_FILE_BITS | mode, 1, uid, gid, mtime_ns, xattrs, content or b"")
            elif kind is _DIRECTORY:
                if isinstance(old, Directory):
                    _restat(old, entry)
                    own.add(name)
                    continue
                new = Directory(_DIRECTORY_BITS | mode, 2, uid, gid, mtime_ns, xattrs)
            elif kind is _SYMLINK:
                new = Symlink(_SYMLINK_BITS | mode, 1, uid, gid, mtime_ns, xattrs, entry.link)
            elif kind is _HARDLINK:
                new = self._target(entry)
            else:
                new = Special(kind.value | mode, 1, uid, gid, mtime_ns, xattrs, entry.rdev)
            children[name] = new
            own.add(name)
            if old is not None and (isinstance(old, Directory) or (self._followed and isinstance(old, Symlink))):
                self._forget_places()

    def note_difference(self, reason: str) -> None:
        """Remember why composefs-rs 0.9.0 makes something else of the current layer, if there is a *reason*."""
        if reason:
            self.differences.setdefault(self._layer, reason)

    def finish(self, xattrs: XattrFilter | None = XattrFilter.ALLOWLIST_ONLY) -> Directory:
        """The root of the tree, transformed unless *xattrs* is None; the builder is used up."""
        if xattrs is None:
            settle_links(self._root)
        else:
            transform_for_oci(self._root, xattrs)
        return self._root

    # -- where things are ----------------------------------------------------------------------

    def _plain_path(self, entry: TarEntry) -> tuple[bytes, bytes]:
        """Parent and name of an entry whose path does not end in a name; no name if nothing is left to do."""
        names = names_of(entry.path)
        if names:
            return b"/".join(names[:-1]), names[-1]
        if entry.type is not _DIRECTORY:
            self._refuse(entry.path, "only a directory can have this path")
        if b".." not in entry.path.split(b"/"):
            _restat(self._root, entry)
        return b"", b""

    def _parent(self, prefix: bytes, path: bytes) -> _Place:
        """The directory *prefix*, made if it is not there, as it has to be for the entry *path*."""
        place = self._walk(prefix, path, _Way.ENTRY)
        assert place is not None
        self._places[prefix] = place
        return place

    def _place_of(self, directory: Directory) -> _Place:
        return directory, directory.children, self._own.setdefault(directory, set())

    def _shadow(self, directory: Directory) -> Directory:
        """Holds what has a reserved name in *directory*."""
        return self._shadows.get(directory) or self._shadows.setdefault(directory, _plain_directory())

    def _shadow_prefix(self, prefix: bytes, path: bytes) -> bytes:
        """What stands for the shadow of the directory *prefix* among the places; no path has a NUL in it."""
        key = prefix + b"\0"
        if key not in self._places:
            self._places[key] = self._place_of(self._shadow(self._parent(prefix, path)[0]))
        return key

    def _forget_places(self) -> None:
        self._places.clear()
        self._followed = False

    def _walk(self, prefix: bytes, path: bytes, way: _Way) -> _Place | None:
        """The directory *prefix*; None if it is not there and is not to be made."""
        if len(path) > _PATH_MAX:
            self._refuse(path, f"the path has {len(path)} bytes, more than {_PATH_MAX}")
        trail = [self._root]
        left, links = names_of(prefix)[::-1], 0
        while left:
            name = left.pop()
            if name in _NO_NAMES:  # of a symbolic link
                del trail[max(len(trail) - (name == b".."), 1) :]
                continue
            holder = self._shadow(trail[-1]) if name[:8] == _RESERVED else trail[-1]
            child = holder.children.get(name)
            if isinstance(child, Symlink) and self._is_followed(holder, name, way):
                links += 1
                left += self._steps_through(child, links, path)
                if child.target[:1] == b"/":
                    del trail[1:]
                continue
            if not isinstance(child, Directory):
                if way is not _Way.ENTRY:
                    return None
                if child is not None and name in self._own.get(holder, ()):
                    self._refuse(path, f"{shown(name)} in it is no directory")
                child = holder.children[name] = self._unlisted_directory(path)
            if way is _Way.ENTRY:
                self._own.setdefault(holder, set()).add(name)
            trail.append(child)
        return self._place_of(trail[-1])

    def _is_followed(self, directory: Directory, name: bytes, way: _Way) -> bool:
        return way is _Way.TARGET or (way is _Way.ENTRY and name in self._own.get(directory, ()))

    def _steps_through(self, link: Symlink, links: int, path: bytes) -> list[bytes]:
        """The names in the target of the *links*-th link on the way to *path*, the last first."""
        names = link.target.split(b"/")
        self._followed = True
        self._steps += len(names)
        if links > _MAX_LINKS:
            self._refuse(path, f"the way there leads through more than {_MAX_LINKS} symbolic links")
        if self._steps > _MAX_STEPS:
            self._refuse(path, f"symbolic links with {self._steps} names in their targets stand on the way to entries")
        return names[::-1]

    def _unlisted_directory(self, path: bytes) -> Directory:
        self._unlisted += 1
        if self._unlisted > _MAX_UNLISTED:
            self._refuse(path, f"more than {_MAX_UNLISTED} directories are not listed in any layer")
        return _plain_directory()

    def _sparse_file(self, entry: TarEntry, content: SparseContent) -> Inode:
        if self._sparse is None:
            self._refuse(entry.path, "it is a sparse file, and what it contains is not here")
        try:
            found = self._sparse(content)
        except ValueError as error:
            if isinstance(error, ComposefsError):
                raise
            self._refuse(entry.path, str(error))
        common = (_FILE_BITS | entry.mode, 1, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
        if isinstance(found, ObjectId):
            return ExternalFile(*common, entry.size, found)
        return InlineFile(*common, found)

    # -- hard links and whiteouts --------------------------------------------------------------

    def _target(self, entry: TarEntry) -> Inode:
        """What a hard link leads to, in this layer or one below."""
        names = names_of(entry.link)
        name = names.pop() if names else b""
        prefix = b"/".join(names)
        place = self._places.get(prefix) or self._walk(prefix, entry.path, _Way.TARGET)
        found = None
        if place is not None:
            found = (self._shadow(place[0]).children if name[:8] == _RESERVED else place[1]).get(name)
        if found is None:
            self._refuse(entry.path, f"it is a hard link to {shown(entry.link)}, which does not exist")
        if isinstance(found, Directory):
            self._refuse(entry.path, f"it is a hard link to {shown(entry.link)}, which is a directory")
        return found

    def _hide(self, prefix: bytes, marker: bytes, path: bytes) -> None:
        """Delete what lower layers brought: one name, or all that is in a directory."""
        place = None if self._followed else self._places.get(prefix)
        place = place or self._walk(prefix, path, _Way.WHITEOUT)
        if place is None:
            return
        directory, children, own = place
        if marker == _OPAQUE:
            if not own.isdisjoint(children):
                self.note_difference(_OWN_WHITEOUT.format(shown(path)))
            self._clear(directory)
            return
        name = marker[len(_WHITEOUT) :]
        found = children.get(name)
        if found is not None and name not in own:
            del children[name]
            if isinstance(found, Directory):
                self._forget_places()
        elif found is not None:
            self.note_difference(_OWN_WHITEOUT.format(shown(path)))
            if isinstance(found, Directory):
                self._clear(found)

    def _clear(self, directory: Directory) -> None:
        pending = [directory]
        while pending:
            directory = pending.pop()
            if directory in self._cleared:
                continue
            self._cleared.add(directory)
            own, children = self._own.get(directory, _NO_NAMES), directory.children
            for name in [name for name in children if name not in own]:
                del children[name]
            pending += [child for child in children.values() if isinstance(child, Directory)]
        self._forget_places()

    def _refuse(self, path: bytes, reason: str) -> NoReturn:
        raise OciError(f"{self._layer}, entry {shown(path)}", reason)


def _plain_directory() -> Directory:
    return Directory(_DIRECTORY_MODE, 2, 0, 0, 0)


def _restat(directory: Directory, entry: TarEntry) -> None:
    directory.mode = _DIRECTORY_BITS | entry.mode
    directory.uid, directory.gid = entry.uid, entry.gid
    directory.mtime_ns, directory.xattrs = entry.mtime_ns, entry.xattrs
