"""Checks of streams: tables and names, every chunk, and the content against the name where that is a digest.

Owns what a stream must be.  Does not own going through its chunks (`content`), nor images that streams name
(`images`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..._repo.names import target_of
from ..._repo.streams import FileSource
from ...digest import ObjectId, check_content_digest
from ...errors import AlgorithmMismatchError, FormatError, SplitstreamError
from ...findings import Finding
from ...splitstream import SplitstreamReader
from ...splitstream.format import OCI_LAYER
from .content import HashedContent, measure
from .loading import sizes
from .names import open_entry
from .run import Run, os_text, raise_ours

__all__ = ["NamedImages", "StreamCheck"]

_DIGEST = re.compile(r"(?:.*-)?((sha256|sha384|sha512):[0-9a-f]+)", re.DOTALL)
_IMAGE_REFS = "composefs.image"

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
        try:
            self._check_content(path, name, reader)
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

    def _check_content(self, path: str, name: str, reader: SplitstreamReader) -> None:
        digest = _DIGEST.fullmatch(name)
        if digest is None or self._run.metadata_only or not _is_digest(digest[1]):
            self._check_size(path, reader, measure(self._run, path, reader))
            return
        content = HashedContent(self._run, path, reader, digest[2])
        self._check_size(path, reader, content.read())
        if not content.whole or (measured := content.digest()) == digest[1]:
            return
        if reader.content_type == OCI_LAYER and (tail := content.lost_tail(digest[1])):
            self._run.found("stream-tail-missing", path, measured=measured, detail=str(tail))
        else:
            self.mismatches.append(Finding("stream-digest-mismatch", path, expected=digest[1], measured=measured))

    def _check_size(self, path: str, reader: SplitstreamReader, size: int | None) -> None:
        if size not in (None, reader.stream_size):
            self._run.found("stream-size-mismatch", path, expected=str(reader.stream_size), measured=str(size))


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
