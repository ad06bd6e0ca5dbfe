"""The tree that composefs-rs 0.9.0 makes of layers, for whoever has to know why its image is another one.

Owns the differences in reading: members that contradict themselves, old dialects of tar, whiteouts of what their own
layer has.  What composefs-rs refuses is refused here, as far as it is known.  Does not own what everybody reads alike,
which is taken from `tar` and `filesystem`.

The archives are read whole, objects and all, and cut anew: what is a file to one is data to the other.  Everything
here blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import fsverity
from ..digest import Algorithm, ObjectId
from ..errors import OciError, inputs_named
from ..naming import layer_stream
from ..repository import Repository
from ..splitstream import OCI_LAYER
from ..tree.inodes import Directory
from ..tree.transform import XattrFilter
from .catalogue import OciImage
from .filesystem import TreeBuilder
from .tar.header import GNU_MAGIC, MAX_FILE_SIZE, USTAR_MAGIC, EntryType, Header, HeaderParser
from .tar.members import EntryReader, TarEntry
from .tar.split import EXTERNAL, INLINE, LARGE_BEGIN, LARGE_PIECE, Event, TarSplitter

__all__ = ["tree_as_composefs_rs"]

_EXTENSIONS = (b"x", b"L", b"K")
_DEVICES = (b"3", b"4")


def tree_as_composefs_rs(
    repo: Repository, image: OciImage, xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY
) -> Directory:
    """The tree that composefs-rs 0.9.0 makes of the layers of *image*.  Blocks; reads all their content.

    Raises:
        OciError, TarError: composefs-rs refuses the layers, or *image* is an artifact.
        StreamNotFoundError, ObjectNotFoundError, SplitstreamError, IntegrityError
    """
    if image.config is None:
        raise OciError(f"manifest {image.manifest.digest}", "it is an artifact, whose layers make no tree")
    builder = _Builder()
    for diff_id in image.config.diff_ids:
        layer = f"layer {diff_id}"
        builder.begin_layer(layer)
        with inputs_named(layer):
            pieces = repo.merge_splitstream(layer_stream(diff_id), image.layers[diff_id], OCI_LAYER)
            for entries in _members(pieces, repo.algorithm):
                builder.add(entries)
    return builder.checked(xattrs)


def _members(pieces: Iterator[bytes], algorithm: Algorithm) -> Iterator[list[TarEntry]]:
    splitter, reader = TarSplitter(parser=_Parser()), EntryReader(_Parser())
    chunks = _Chunks(algorithm)
    for piece in pieces:
        yield _read(reader, chunks.take(splitter.feed(piece)))
    yield _read(reader, chunks.take(splitter.feed(b"", final=True)))
    if not reader.ended:
        reader.finish()


def _read(reader: EntryReader, chunks: list[bytes | ObjectId]) -> list[TarEntry]:
    entries: list[TarEntry] = []
    if not reader.ended:
        reader.feed(chunks, entries)
    return entries


class _Chunks:
    """What a splitstream would have for parts of an archive."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm, self._large = algorithm, fsverity.Hasher(algorithm)

    def take(self, events: list[Event]) -> list[bytes | ObjectId]:
        chunks: list[bytes | ObjectId] = []
        for event in events:
            if event.kind == INLINE:
                chunks.append(event.data)
            elif event.kind == EXTERNAL:
                chunks.append(fsverity.digest(event.data, self._algorithm))
            elif event.kind == LARGE_BEGIN:
                self._large = fsverity.Hasher(self._algorithm)
            elif event.kind == LARGE_PIECE:
                self._large.update(event.data)
            else:
                chunks.append(self._large.id())
        return chunks


class _Parser(HeaderParser):
    """Reads members as composefs-rs does."""

    def __init__(self) -> None:
        super().__init__(MAX_FILE_SIZE)

    def _parse(self, header: bytes, offset: int) -> Header:
        kind, known = header[156:157], header[257:265] in (USTAR_MAGIC, GNU_MAGIC)
        if kind in _EXTENSIONS and not known:
            raise ValueError(f"composefs-rs 0.9.0 does not know member type {kind!r} in this dialect")
        if kind in _DEVICES and not known:
            raise ValueError("composefs-rs 0.9.0 finds no numbers for this device")
        found = super()._parse(header, offset)
        if found.sparse is not None:
            raise ValueError("composefs-rs 0.9.0 does not read sparse members")
        return found

    def extension(self, data: bytes) -> None:
        super().extension(data)
        if self._pax is not None and self._pax.oddity:
            self._refuse_extension(f"composefs-rs 0.9.0 does not read {self._pax.oddity}")

    def _is_sound(self, header: bytes, excess: int) -> bool:
        return not excess

    def _has_prefix(self, header: bytes) -> bool:
        return header[257:265] == USTAR_MAGIC and header[345] != 0

    def _type_of(self, flag: bytes, header: bytes, path: bytes) -> EntryType:
        return self._flag_type(flag)

    def _data_size(self, size: int, kind: EntryType) -> int:
        return self._check_size(size)


class _Builder(TreeBuilder):
    """Makes of members what composefs-rs does."""

    _reserved = b""  # no name begins with nothing but itself: nothing is reserved

    def checked(self, xattrs: XattrFilter) -> Directory:
        for name, needed in ((b"usr", True), (b"run", False)):
            found = self._root.children.get(name)
            if not isinstance(found, Directory) and (needed or found is not None):
                raise OciError("the image", f"composefs-rs 0.9.0 refuses it: /{name.decode()} is no directory")
        return self.finish(xattrs)

    def _walk(self, prefix: bytes, path: bytes, way: object) -> tuple[Directory, dict, set[bytes]] | None:  # type: ignore[type-arg]
        directory = self._root
        for name in prefix.split(b"/"):
            if name in (b"", b"."):
                continue
            child = directory.children.get(name)
            if not isinstance(child, Directory):
                shown = name[:100].decode("utf-8", "backslashreplace")
                self._refuse(path, f"composefs-rs 0.9.0 refuses it: {shown!r} in it is no directory that is there")
            directory = child
        return self._place_of(directory)

    def _hide(self, prefix: bytes, marker: bytes, path: bytes) -> None:
        place = self._walk(prefix, path, None)
        assert place is not None
        children = place[1]
        if marker == b".wh..wh..opq":
            children.clear()
        else:
            children.pop(marker[4:], None)
        self._forget_places()

    def _plain_path(self, entry: TarEntry) -> tuple[bytes, bytes]:
        names = [name for name in entry.path.split(b"/") if name not in (b"", b".")]
        if names and names[-1] != b"..":
            return b"/".join(names[:-1]), names[-1]
        if entry.type is not EntryType.DIRECTORY:
            self._refuse(entry.path, "only a directory can have this path")
        return b"", b""
