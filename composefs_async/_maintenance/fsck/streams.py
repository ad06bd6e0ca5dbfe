"""Checks of streams: tables and names, every chunk, and the content against the name where that is a digest.

Owns what a stream must be.  Does not own going through its chunks (`content`), nor images that streams name
(`images`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..._repo.publish import target_of
from ..._repo.streams import FileSource
from ...digest import ObjectId, check_content_digest
from ...errors import AlgorithmMismatchError, FormatError, SplitstreamError
from ...findings import Finding
from ...splitstream import SplitstreamReader
from ...splitstream.format import OCI_LAYER
from .content import HashedContent, measure
from .context import Run, os_text, raise_ours
from .links import open_entry
from .object_reader import sizes
from .objects import object_not_found

__all__ = ["Needed", "StreamCheck"]

_DIGEST = re.compile(r"(?:.*-)?((sha256|sha384|sha512):[0-9a-f]+)", re.DOTALL)
_IMAGE_REFS = "composefs.image"
_FLAGS = os.O_RDONLY | os.O_NONBLOCK

Found = Callable[[Finding], object]


class Needed(NamedTuple):
    """What a stream refers to, and no name there is leads to."""

    path: str
    """Of the stream, or of the one with a name that leads to it."""
    name: str
    """The reference."""
    object_id: ObjectId


class StreamCheck:
    """Checks streams one at a time.

    Args:
        streams, images: names of the first level, and what they lead to.
    """

    def __init__(self, run: Run, streams: Mapping[str, ObjectId], images: Mapping[str, ObjectId]) -> None:
        self._run = run
        self._links = streams
        self._streams, self._images = frozenset(streams.values()), frozenset(images.values())
        self._needed_images: list[Needed] = []
        self._needed_streams: list[Needed] = []
        self._taken: set[tuple[str, ObjectId]] = set()
        self.mismatches: list[Finding] = []
        """Content that is not what its name says, unless that is the name of something else (`excuse`)."""

    def check(self, name: str, *, content: bool = True) -> None:
        """Check ``streams/NAME``.  Safe for use from several threads.

        Args:
            content: otherwise only its references are looked at.
        """
        path = f"streams/{name}"
        opened = open_entry(self._run, "streams", name)
        if opened is None:
            return
        source = FileSource(opened[0])
        try:
            self._check_file(path, name, source, content=content)
        except OSError as error:
            raise_ours(error, path)
            cause = os_text(error)
            self._run.failed("stream-read-failed", path, error, detail=f"Reading stream '{name}'", cause=cause)
        finally:
            source.close()

    def _check_file(self, path: str, name: str, source: FileSource, *, content: bool) -> None:
        try:
            reader = SplitstreamReader(source, self._run.state.algorithm)
        except (SplitstreamError, AlgorithmMismatchError, OSError) as error:
            if isinstance(error, OSError):
                raise_ours(error, path)
            number = error if isinstance(error, OSError) else 0
            cause = os_text(number) if number else str(error)
            detail = f"Opening stream '{name}'"
            self._run.failed("stream-open-failed", path, number, detail=detail, cause=cause)
            return
        self._check_named_refs(path, reader)
        if content:
            self._check_content(path, name, reader, self._found)

    def _found(self, finding: Finding) -> None:
        mismatch = finding.kind == "stream-digest-mismatch"
        (self.mismatches if mismatch else self._run.findings).append(finding)

    def excuse(self, packed: Callable[[], set[str]]) -> None:
        """Make findings of the mismatches, or notices where *packed*, called if there are any, has the digest."""
        known = packed() if self.mismatches else set[str]()
        for finding in self.mismatches:
            if finding.expected not in known:
                self._run.findings.append(finding)
            elif finding.object_id is None:
                self._run.found("stream-digest-unknown", finding.path)

    # -- what has no name ----------------------------------------------------------------------

    def needed_streams(self) -> list[Needed]:
        """Streams without a name that have been found since the last call, each once for what it is taken for."""
        found = {each[1:]: each for each in sorted(self._needed_streams, reverse=True) if each[1:] not in self._taken}
        self._needed_streams.clear()
        self._taken.update(found)
        return sorted(found.values())

    def needed_images(self) -> list[Needed]:
        """Images without a name, each once."""
        return sorted({each.object_id: each for each in sorted(self._needed_images, reverse=True)}.values())

    def check_needed(self, needed: Needed) -> None:
        """Check a stream by what refers to it.  Safe for use from several threads."""
        name, wrong = _stream_name(needed.name).removeprefix("streams/"), list[Finding]()
        try:
            source = FileSource(self._run.state.open_object_file(needed.object_id.path, _FLAGS))
        except FileNotFoundError:
            return  # a finding of what needs it
        except OSError as error:
            raise_ours(error, f"objects/{needed.object_id.path}")
            self._found_needed(needed, os_text(error), unread=self._run.unread(error))
            return
        try:
            reader = SplitstreamReader(source, self._run.state.algorithm)
            self._check_named_refs(needed.path, reader)
            self._check_content(needed.path, name, reader, wrong.append)
        except OSError as error:
            raise_ours(error, f"objects/{needed.object_id.path}")
            self._found_needed(needed, os_text(error), unread=self._run.unread(error))
        except (SplitstreamError, AlgorithmMismatchError) as error:
            if name:  # anything can be meant by other references
                self._found_needed(needed, str(error))
        finally:
            source.close()
        for each in wrong:
            self._found_needed(needed, each.reason, each.expected)

    def _found_needed(self, needed: Needed, detail: str, expected: str = "", *, unread: bool = False) -> None:
        finding = Finding(
            "named-stream-invalid",
            needed.path,
            object_id=needed.object_id,
            name=needed.name,
            expected=expected,
            detail=detail,
            unread=unread,
        )
        (self.mismatches if expected else self._run.findings).append(finding)

    # -- references ----------------------------------------------------------------------------

    def _check_named_refs(self, path: str, reader: SplitstreamReader) -> None:
        ids = reader.named_refs.values()
        for (name, object_id), size in zip(
            reader.named_refs.items(), sizes(self._run.state, b"".join(ids)), strict=True
        ):
            if size < 0:
                object_not_found(self._run, "missing-named-ref", path, object_id, name)
            elif name.startswith(_IMAGE_REFS):
                if object_id not in self._images:
                    self._needed_images.append(Needed(path, name, object_id))
                    self._check_lost_name(path, name, object_id, f"images/{object_id.hex()}")
            else:
                expected = _stream_name(name)
                if self._links.get(expected.removeprefix("streams/")) == object_id:
                    continue
                if expected or object_id not in self._streams:
                    self._needed_streams.append(Needed(path, name, object_id))
                if object_id not in self._streams:
                    self._check_lost_name(path, name, object_id, expected)

    def _check_lost_name(self, path: str, name: str, object_id: ObjectId, expected: str) -> None:
        """Something that this stream needs has no name; if it is known which one it had, and nothing else has that."""
        if expected and target_of(self._run.state, expected) is None:
            fields = {"name": name, "object_id": object_id, "expected": expected}
            self._run.found("named-ref-unlinked", path, **fields)

    # -- content -------------------------------------------------------------------------------

    def _check_content(self, path: str, name: str, reader: SplitstreamReader, found: Found) -> None:
        digest = _DIGEST.fullmatch(name)
        try:
            if digest is None or self._run.metadata_only or not _is_digest(digest[1]):
                _check_size(path, reader, measure(self._run, path, reader), found)
                return
            content = HashedContent(self._run, path, reader, digest[2])
            _check_size(path, reader, content.read(), found)
        except SplitstreamError as error:
            found(Finding("stream-content-invalid", path, detail=str(error)))
            return
        if not content.whole or (measured := content.digest()) == digest[1]:
            return
        if reader.content_type == OCI_LAYER and (tail := content.lost_tail(digest[1])):
            found(Finding("stream-tail-missing", path, measured=measured, detail=str(tail)))
        else:
            found(Finding("stream-digest-mismatch", path, expected=digest[1], measured=measured))


def _check_size(path: str, reader: SplitstreamReader, size: int | None, found: Found) -> None:
    if size not in (None, reader.stream_size):
        found(Finding("stream-size-mismatch", path, expected=str(reader.stream_size), measured=str(size)))


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
