"""Checks of streams: tables and names, every chunk, and the content against the name where that is a digest.

Owns the reading of content in the course of which objects are compared with their names, too, so that each is read
once for both.  Does not own what is wrong with objects (`check_objects`) nor images that streams name (`check_images`).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator

from .._repo.names import target_of
from .._repo.streams import FileSource
from ..digest import ObjectId, check_content_digest
from ..errors import AlgorithmMismatchError, FormatError, SplitstreamError
from ..results import Finding
from ..splitstream import SplitstreamReader
from ..splitstream.format import OCI_LAYER
from .check_names import open_entry
from .check_objects import object_failed
from .check_run import Run, os_text, raise_ours
from .loading import Failure, load, load_large, sizes

__all__ = ["NamedImages", "StreamCheck"]

_DIGEST = re.compile(r"(?:.*-)?((sha256|sha384|sha512):[0-9a-f]+)", re.DOTALL)
_IMAGE_REFS = "composefs.image"
_BATCH = 1024
_TAIL_STEP = 512  # of a tar
_MAX_TAIL = 4 << 20
"""Zeros that are tried as the lost tail of a tar: the largest record that GNU tar writes is of this order."""

NamedImages = dict[ObjectId, tuple[str, str]]
"""Images that streams name, with the path of one such stream and the name."""


class StreamCheck:
    """Checks streams one at a time.

    Args:
        streams: what names of streams lead to.
        images: what names of images lead to.
    """

    def __init__(self, run: Run, streams: dict[ObjectId, str], images: dict[ObjectId, str]) -> None:
        self._run = run
        self._streams, self._images = streams, images
        self.named_images: NamedImages = {}
        self.mismatches: list[Finding] = []
        """Content that is not what its name says, unless that is the name of something else (`excuse`)."""

    def check(self, name: str) -> None:
        """Check ``streams/NAME``.  Safe for use from several threads."""
        path = f"streams/{name}"
        opened = open_entry(self._run, "streams", name)
        if opened is None:
            return
        source = FileSource(opened[0])
        try:
            self._check_file(path, name, source)
        except OSError as error:
            raise_ours(error, path)
            self._run.found("stream-read-failed", path, detail=f"Reading stream '{name}'", cause=os_text(error))
        finally:
            source.close()

    def _check_file(self, path: str, name: str, source: FileSource) -> None:
        try:
            reader = SplitstreamReader(source, self._run.state.algorithm)
        except (SplitstreamError, AlgorithmMismatchError, OSError) as error:
            if isinstance(error, OSError):
                raise_ours(error, path)
            cause = os_text(error) if isinstance(error, OSError) else str(error)
            self._run.found("stream-open-failed", path, detail=f"Opening stream '{name}'", cause=cause)
            return
        self._check_named_refs(path, reader)
        table = bytes(reader.object_refs)
        found = sizes(self._run.state, table)
        whole = True
        for object_id, size in zip(reader.object_refs, found, strict=True) if min(found, default=0) < 0 else ():
            if size < 0:
                whole = False
                self._run.found("missing-object-ref", path, object_id=object_id.hex())
        try:
            self._check_content(path, name, reader, table, found, whole)
        except SplitstreamError as error:
            self._run.found("stream-content-invalid", path, detail=str(error))

    def excuse(self, packed: Callable[[], set[str]]) -> None:
        """Make findings of the mismatches, or notices where *packed*, called if there are any, has the digest."""
        known = packed() if self.mismatches else set[str]()
        for finding in self.mismatches:
            if finding.expected in known:
                self._run.found("stream-digest-unknown", finding.path)
            else:
                self._run.findings.append(finding)

    # -- references ----------------------------------------------------------------------------

    def _check_named_refs(self, path: str, reader: SplitstreamReader) -> None:
        ids = reader.named_refs.values()
        for (name, object_id), size in zip(
            reader.named_refs.items(), sizes(self._run.state, b"".join(ids)), strict=True
        ):
            if size < 0:
                self._run.found("missing-named-ref", path, name=name, object_id=object_id.hex())
                continue
            is_image = name.startswith(_IMAGE_REFS)
            if is_image and object_id not in self._images:
                self.named_images.setdefault(object_id, (path, name))
            if object_id not in (self._images if is_image else self._streams):
                self._check_lost_name(path, name, object_id, is_image)

    def _check_lost_name(self, path: str, name: str, object_id: ObjectId, is_image: bool) -> None:
        """Something that this stream needs has no name; if it is known which one it had, and nothing else has that."""
        expected = f"images/{object_id.hex()}" if is_image else _stream_name(name)
        if expected and target_of(self._run.state, expected) is None:
            fields = {"name": name, "object_id": object_id.hex(), "expected": expected}
            self._run.found("named-ref-unlinked", path, **fields)

    # -- content -------------------------------------------------------------------------------

    def _check_content(
        self, path: str, name: str, reader: SplitstreamReader, table: bytes, found: array[int], whole: bool
    ) -> None:
        digest = _DIGEST.fullmatch(name)
        hashing = None
        if digest and whole and not self._run.metadata_only and _is_digest(digest[1]):
            hashing = Content(self._run, table, digest[2])
        total = 0
        for batch in reader.chunk_batches():
            for chunk in batch:
                total += found[chunk] if isinstance(chunk, int) else len(chunk)
            if hashing:
                hashing.feed(batch)
        if whole and total != reader.stream_size:
            self._run.found("stream-size-mismatch", path, expected=str(reader.stream_size), measured=str(total))
        if digest and hashing and hashing.whole and (measured := hashing.digest()) != digest[1]:
            if reader.content_type == OCI_LAYER and (tail := hashing.lost_tail(digest[1])):
                self._run.found("stream-tail-missing", path, measured=measured, detail=str(tail))
            else:
                self.mismatches.append(Finding("stream-digest-mismatch", path, expected=digest[1], measured=measured))


class Content:
    """The digest of a stream's content, as it comes."""

    def __init__(self, run: Run, table: bytes, algorithm: str) -> None:
        self._run, self._table, self._algorithm = run, table, algorithm
        self._hasher = hashlib.new(algorithm)
        self.whole = True
        """Whether all objects are what they are called: otherwise it is them that are wrong."""

    def digest(self) -> str:
        return f"{self._algorithm}:{self._hasher.hexdigest()}"

    def feed(self, batch: list[bytes | int]) -> None:
        """Take the next chunks.  Reads their objects and compares them with their names."""
        width, table = self._run.state.algorithm.digest_size, self._table
        ids = b"".join([table[chunk * width : (chunk + 1) * width] for chunk in batch if isinstance(chunk, int)])
        with self._run.buffer() as buffer:
            objects = self._objects(ids, buffer)
            parts: list[bytes | memoryview] = []
            for chunk in batch:
                if isinstance(chunk, bytes):
                    parts.append(chunk)
                    continue
                while (part := next(objects)) is None:
                    self._update(parts)
                parts.append(part)
            self._update(parts)

    def _update(self, parts: list[bytes | memoryview]) -> None:
        # One call: for each that is longer than 2 KiB hashlib gives the interpreter lock away and takes it again.
        self._hasher.update(b"".join(parts))
        parts.clear()

    def _objects(self, ids: bytes, buffer: bytearray) -> Iterator[memoryview | None]:
        """The content of each object; None when all that came before must be hashed, since its buffer is used again.

        Of an object that does not fit into the buffer there is nothing: it has been hashed when it comes.
        """
        width, view, at = self._run.state.algorithm.digest_size, memoryview(buffer), 0
        while at < len(ids):
            yield None
            batch = ids[at : at + _BATCH * width]
            loaded = load(self._run.state, batch, buffer)
            large = self._failures(batch, loaded.failures)
            self._run.pace(sum(size for size in loaded.sizes if size > 0))
            self._run.looked_at.update(batch[i : i + width] for i in range(0, loaded.taken * width, width))
            start = 0
            for index, size in enumerate(loaded.sizes):
                if index in large:
                    yield None
                    self._take_large(large[index])
                yield view[start : start + max(size, 0)]
                start += max(size, 0)
            at += loaded.taken * width

    def _failures(self, batch: bytes, failures: list[Failure]) -> dict[int, ObjectId]:
        """Report failures, except for objects that do not fit into the buffer, which are returned."""
        width, large = self._run.state.algorithm.digest_size, dict[int, ObjectId]()
        for failure in failures:
            object_id = ObjectId(batch[failure.at * width :][:width])
            if failure.step == "large":
                large[failure.at] = object_id
            else:
                self._failed(object_id, failure)
        return large

    def _failed(self, object_id: ObjectId, failure: Failure) -> None:
        self.whole = False
        object_failed(self._run, object_id, failure)

    def _take_large(self, object_id: ObjectId) -> None:
        if failure := load_large(self._run.state, object_id, self._take_piece):
            self._failed(object_id, failure)

    def _take_piece(self, piece: memoryview) -> None:
        self._hasher.update(piece)
        self._run.pace(len(piece))

    def lost_tail(self, expected: str) -> int:
        """How many zeros would make the digest the *expected* one; 0 if none do.

        composefs-rs of March to May 2026 dropped what follows the end marker of a tar, in practice zeros.
        """
        hasher, zeros = self._hasher.copy(), bytes(_TAIL_STEP)
        wanted = bytes.fromhex(expected.partition(":")[2])
        for size in range(_TAIL_STEP, _MAX_TAIL + 1, _TAIL_STEP):
            hasher.update(zeros)
            if hasher.digest() == wanted:
                return size
        return 0


def _is_digest(text: str) -> bool:
    try:
        check_content_digest(text)
    except FormatError:
        return False
    return True


def _stream_name(reference: str) -> str:
    """The path of the stream that a reference of a config or manifest leads to, if that can be told."""
    kind, digest = ("config", reference[7:]) if reference.startswith("config:") else ("layer", reference)
    return f"streams/oci-{kind}-{digest}" if _is_digest(digest) else ""
