"""Looking into layers that a repository holds: their bytes, their members, and what they cost.

Does not own finding layers (`catalogue`: an image's ``layers``), importing them (`layers`), nor what tar headers mean
(`tar.members`).

Functions here block; ``x_async`` runs ``x`` in a worker thread.  A repository that somebody else made is safe to look
at: memory is bounded, and whatever is damaged is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from .._aio.bulk import iterate
from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._repo.streams import OpenStream
from ..digest import ObjectId
from ..errors import DigestMismatchError, StreamNotFoundError, inputs_named
from ..naming import layer_stream
from ..repository import Repository, state_of
from ..splitstream import OCI_LAYER
from ..tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from ..tree.dumpwriter import format_entry, format_link
from .documents import content_hasher
from .sparse_contents import SparseContents
from .tar.members import EntryType, TarEntry, read_entries
from .tar.sparse import SparseContent

__all__ = [
    "LayerInfo",
    "layer_content",
    "layer_content_async",
    "layer_dump",
    "layer_dump_async",
    "layer_entries",
    "layer_entries_async",
    "layer_info",
    "layer_info_async",
]

_MEMBERS = 256
"""How many members one way to a worker thread brings."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What a stored layer consists of."""

    diff_id: str
    stream_id: ObjectId
    size: int
    """Size of the tar in bytes."""
    entries: int
    external_objects: int
    """Distinct ones."""
    external_size: int
    """Content of files that are objects, in bytes, counted as often as it occurs."""
    inline_size: int


def layer_content(repo: Repository, diff_id: str) -> Iterator[bytes]:
    """The tar archive of a layer as it came in, in pieces of at most 1 MiB; compared with *diff_id* at the end.

    Raises:
        StreamNotFoundError, SplitstreamError
        DigestMismatchError: after the last piece, or that of an object; what was given out before is not to be used.
    """
    hasher, stream_id = content_hasher("layer", diff_id), _stream_of(repo, diff_id)
    for piece in repo.merge_splitstream(layer_stream(diff_id), stream_id, OCI_LAYER):
        hasher.update(piece)
        yield piece
    found = f"{diff_id.partition(':')[0]}:{hasher.hexdigest()}"
    if found != diff_id:
        raise DigestMismatchError(f"layer {diff_id}", diff_id, found)


def layer_content_async(repo: Repository, diff_id: str) -> AsyncIterator[bytes]:
    """Yield the tar of a layer, read in a worker thread; async twin of `layer_content`."""
    return iterate(partial(layer_content, repo, diff_id))


def layer_entries(repo: Repository, diff_id: str) -> Iterator[TarEntry]:
    """The members of a tar layer, in the order of the archive.

    Raises:
        StreamNotFoundError, SplitstreamError, TarError
    """
    with _open(repo, diff_id, _stream_of(repo, diff_id)) as reader:
        yield from read_entries(reader.chunks())


def layer_entries_async(repo: Repository, diff_id: str) -> AsyncIterator[TarEntry]:
    """Yield the members of a tar layer, read in a worker thread; async twin of `layer_entries`."""
    return iterate(partial(layer_entries, repo, diff_id), at_a_time=_MEMBERS)


def layer_dump(repo: Repository, diff_id: str) -> Iterator[bytes]:
    """The members as lines of a dump file, in the order of the archive: no tree, so each link count is 1.

    Raises:
        StreamNotFoundError, SplitstreamError, TarError
    """
    contents = SparseContents(state_of(repo), store=False)
    for entry in layer_entries(repo, diff_id):
        path = b"/" + entry.path
        if entry.type is EntryType.HARDLINK:
            yield format_link(path, b"/" + entry.link)
        else:
            if isinstance(entry.content, SparseContent):
                entry = entry._replace(content=contents.find(entry.content))  # noqa: PLW2901
            yield format_entry(path, _inode(entry), 1)


def layer_dump_async(repo: Repository, diff_id: str) -> AsyncIterator[bytes]:
    """Yield the members of a layer as lines of a dump file, read in a worker thread; async twin of `layer_dump`."""
    return iterate(partial(layer_dump, repo, diff_id), at_a_time=_MEMBERS)


@operation
def layer_info(repo: Repository, diff_id: str) -> LayerInfo:
    """Read the whole stream of a layer, but none of its objects, and count.

    Raises:
        StreamNotFoundError, SplitstreamError, TarError
    """
    counts, stream_id = _Counts(), _stream_of(repo, diff_id)
    with _open(repo, diff_id, stream_id) as reader:
        chunks = counts.watch(reader.chunks())
        for entry in read_entries(chunks):
            counts.add(entry)
        for _ in chunks:  # what follows the end of the archive
            pass
        objects = len(reader.object_refs)
    size = counts.inline + counts.external
    return LayerInfo(diff_id, stream_id, size, counts.entries, objects, counts.external, counts.inline)


@async_operation
async def layer_info_async(repo: Repository, diff_id: str) -> LayerInfo:
    """Count what a layer holds, in a worker thread; async twin of `layer_info`."""
    return await hop(layer_info, repo, diff_id)


@contextmanager
def _open(repo: Repository, diff_id: str, stream_id: ObjectId) -> Iterator[OpenStream]:
    name = layer_stream(diff_id)
    with inputs_named(f"layer {diff_id}"), repo.open_stream(name, stream_id, OCI_LAYER) as reader:
        yield reader


def _stream_of(repo: Repository, diff_id: str) -> ObjectId:
    found = repo.has_stream(layer_stream(diff_id))
    if found is None:
        raise StreamNotFoundError(diff_id, "layer")
    return found


class _Counts:
    def __init__(self) -> None:
        self.inline = self.external = self.entries = 0

    def watch(self, chunks: Iterator[bytes | ObjectId]) -> Iterator[bytes | ObjectId]:
        for chunk in chunks:
            self.inline += 0 if isinstance(chunk, ObjectId) else len(chunk)
            yield chunk

    def add(self, entry: TarEntry) -> None:
        self.entries += 1
        if isinstance(entry.content, SparseContent):
            self._add(entry.content.stored, entry.content.form.stored)
        else:
            self._add(entry.content, entry.size)

    def _add(self, content: bytes | ObjectId | None, size: int) -> None:
        self.external += size if isinstance(content, ObjectId) else 0


def _inode(entry: TarEntry) -> Inode:
    """What the member would be in a tree; not for hard links, which are another name of something else."""
    mode = entry.mode | entry.type
    common = (mode, 1, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
    if entry.type is EntryType.DIRECTORY:
        return Directory(*common)
    if entry.type is EntryType.SYMLINK:
        return Symlink(*common, entry.link)
    if entry.type is not EntryType.FILE:
        return Special(*common, entry.rdev)
    if isinstance(entry.content, ObjectId):
        return ExternalFile(*common, entry.size, entry.content)
    assert not isinstance(entry.content, SparseContent)
    return InlineFile(*common, entry.content or b"")
