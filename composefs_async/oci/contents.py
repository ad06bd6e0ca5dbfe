"""Which objects of a repository are files of which sha256: a cache, which can be deleted at any time.

Owns ``.composefs-async/contents``.  Tables of contents of zstd:chunked layers name files by sha256, objects have other
names; a layer that has such a table fills this when it is imported, and `index_contents` for any image.  A pull then
fetches only files that it does not find here.  What is said here is a hint: the digest of the whole layer proves what
was made of it.

The file is a line of text and records of equal size, the newest last: sha256, size (8 bytes, little-endian), object id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._maintenance import state_dir
from .._repo import objects
from .._repo.state import RepoState
from .._repo.streams import open_stream
from ..digest import ObjectId
from ..errors import ComposefsError
from ..naming import layer_stream
from ..repository import Repository, state_of
from ..splitstream import OCI_LAYER
from .catalogue import open_image
from .documents import Descriptor
from .limits import Limits
from .sources.base import LocalBlob
from .sources.chunked.assembly import read_toc
from .sources.chunked.toc import TocFile, find_positions
from .stored_layers import layer_entries
from .tar.members import read_entries

__all__ = ["RepositoryContents", "index_contents", "index_contents_async", "note_layer"]

_FILE: Final = "contents"
_LIMIT: Final = 64 << 20
_DIGEST, _SIZE = 32, 8
_PIECE: Final = 1 << 20


class RepositoryContents:
    """Files of a repository by their content; the `Contents` that a source is given."""

    def __init__(self, state: RepoState) -> None:
        self._state = state
        self._ids = state.algorithm.digest_size
        self._header = f"composefs-async contents 1 {state.algorithm.value}\n".encode()

    def is_empty(self) -> bool:
        """Whether nothing at all is known."""
        return not self._read()

    def find(self, wanted: Sequence[TocFile]) -> dict[bytes, ObjectId]:
        """The objects that are said to be these files, and are there.  Blocks for a read of the whole cache."""
        known = self._read()
        found: dict[bytes, ObjectId] = {}
        for file in wanted if known else ():
            value = known.get(file.digest)
            if file.digest in found or value is None or int.from_bytes(value[:_SIZE], "little") != file.size:
                continue
            object_id = ObjectId(value[_SIZE:])
            if objects.has_object(self._state, object_id):
                found[file.digest] = object_id
        return found

    def open(self, found: ObjectId) -> int:
        """Open an object as `open_object` does; the caller closes the descriptor."""
        return objects.open_object(self._state, found)

    def note(self, pairs: Sequence[tuple[TocFile, ObjectId]]) -> None:
        """Remember what files are.  Blocks; not durable, and of two at once one may be lost."""
        known = self._read()
        changed = False
        for file, object_id in pairs:
            value = file.size.to_bytes(_SIZE, "little") + bytes(object_id)
            if known.get(file.digest) != value:
                known.pop(file.digest, None)
                known[file.digest] = value
                changed = True
        if changed:
            self._write(known)

    def forget(self, digests: Sequence[bytes]) -> None:
        """Remove files that were not what they were said to be."""
        known = self._read()
        if [known.pop(digest) for digest in digests if digest in known]:
            self._write(known)

    def _read(self) -> dict[bytes, bytes]:
        content = state_dir.read(self._state, _FILE, _LIMIT) or b""
        if not content.startswith(self._header):
            return {}
        width, start = _DIGEST + _SIZE + self._ids, len(self._header)
        ends = range(start + width, len(content) + 1, width)
        return {content[end - width : end - width + _DIGEST]: content[end - width + _DIGEST : end] for end in ends}

    def _write(self, known: dict[bytes, bytes]) -> None:
        most = (_LIMIT - len(self._header)) // (_DIGEST + _SIZE + self._ids)
        records = [digest + value for digest, value in known.items()][-most:]
        state_dir.write(self._state, _FILE, b"".join([self._header, *records]))


@operation
def index_contents(repo: Repository, name: str) -> int:
    """Let pulls of zstd:chunked layers find the files of the image *name*, however its layers were packed.

    Blocks for a read of all its files; what is damaged is passed over.  Not durable: it is a cache.

    Args:
        name: a tag, or a digest, as for `open_image`.

    Returns:
        How many files can be found now; those of at most 64 bytes are no objects.

    Raises:
        StreamNotFoundError: there is no such image.
        The errors of `open_image` and `layer_entries`.
    """
    state, found = state_of(repo), dict[ObjectId, TocFile]()
    image = open_image(repo, name)
    for diff_id in image.layers if image.config is not None else ():
        for entry in layer_entries(repo, diff_id):
            content = entry.content
            if isinstance(content, ObjectId) and content not in found:
                digest = _sha256(state, content, entry.size)
                if digest is not None:
                    found[content] = TocFile(entry.path, entry.size, digest, 0, 0)
    RepositoryContents(state).note([(file, object_id) for object_id, file in found.items()])
    return len(found)


@async_operation
async def index_contents_async(repo: Repository, name: str) -> int:
    """Index the files of an image in a worker thread; see `index_contents`."""
    return await hop(index_contents, repo, name)


def _sha256(state: RepoState, object_id: ObjectId, size: int) -> bytes | None:
    """Of the content of an object; None if it cannot be read, or has another size."""
    hasher, found = sha256(), 0
    try:
        with open(objects.open_object(state, object_id), "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                hasher.update(piece)
                found += len(piece)
    except (ComposefsError, OSError):
        return None
    return hasher.digest() if found == size else None


def note_layer(
    state: RepoState, descriptor: Descriptor, blob: LocalBlob, diff_id: str, stream_id: ObjectId, limits: Limits
) -> int:
    """Remember the files of a layer that has just been imported, if its blob has a table of contents.  Blocks.

    Args:
        blob: of which at least that part is there.

    Returns:
        How many files it has that are objects.
    """
    positions = find_positions(descriptor)
    if positions is None:
        return 0
    try:
        files = read_toc(blob, positions, f"layer {diff_id}", limits).files
    except ComposefsError:  # the layer is right all the same
        return 0
    pairs = list(_pairs(state, {_plain(file.name): file for file in files}, diff_id, stream_id))
    RepositoryContents(state).note(pairs)
    return len(pairs)


def _pairs(
    state: RepoState, files: dict[bytes, TocFile], diff_id: str, stream_id: ObjectId
) -> Iterator[tuple[TocFile, ObjectId]]:
    """Files with the objects that they are in a layer's stream, by their names."""
    with open_stream(state, layer_stream(diff_id), stream_id, OCI_LAYER) as reader:
        for entry in read_entries(reader.chunks()):
            file = files.get(_plain(entry.path))
            if file is not None and isinstance(entry.content, ObjectId) and entry.size == file.size:
                yield file, entry.content


def _plain(name: bytes) -> bytes:
    return name.removeprefix(b"./").strip(b"/")
