"""Registries and image directories as the ends of a copy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from .._aio.to_thread import in_thread
from ..errors import DigestMismatchError, ImageNotFoundError, OciError
from ..oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
    REF_NAME,
    Descriptor,
    parse_index,
    verify_content,
)
from ..oci.jsondoc import DOCUMENT_LIMIT, parse_json
from . import reading
from .content import Content, from_file, from_registry
from .manifests import FetchedDocument
from .reference import Reference, check_digest
from .session import Place, Session
from .signatures import check_signatures
from .upload import push_blob, push_manifest

__all__ = ["LayoutDestination", "LayoutSource", "RegistryDestination", "RegistrySource"]


class RegistrySource:
    """An image in a registry, or its mirrors."""

    def __init__(self, session: Session, reference: Reference) -> None:
        self._session, self._reference = session, reference
        self.name: str = str(reference)

    async def top(self) -> FetchedDocument:
        """What the reference names, if policy.json allows to take it."""
        policy, demands = await self._session.demands(self._reference)
        found = await self._fetch(self._reference)
        if policy is not None and demands:
            places = self._session.places(self._reference)
            await check_signatures(self._session, places, self._reference, found.digest, policy, demands)
        return found

    async def document(self, digest: str) -> FetchedDocument:
        """Fetch the manifest or index with *digest*, which is checked."""
        return await self._fetch(self._reference.with_digest(digest))

    async def _fetch(self, reference: Reference) -> FetchedDocument:
        return (await self._session.first(reference, lambda place: reading.manifest(self._session, place, reference)))[
            1
        ]

    def content(self, descriptor: Descriptor) -> Content:
        """Return the blob of *descriptor* as content that is fetched when it is read."""
        places = self._session.places(self._reference)
        return from_registry(self._session, places, descriptor.digest, descriptor.size)

    async def referrers(self, digest: str) -> AsyncIterator[Descriptor]:
        """Yield the descriptors of what refers to *digest*."""
        place = self._session.places(self._reference)[-1]
        async with aclosing(reading.referrers(self._session, place, self._reference.with_digest(digest))) as found:
            async for each in found:
                yield each


class RegistryDestination:
    """A name in a registry.

    Args:
        origin: where the image comes from; blobs are mounted from there if it is in the same registry.
    """

    def __init__(self, session: Session, reference: Reference, origin: Reference | None = None) -> None:
        self._session, self._reference = session, reference
        self._place: Place = session.places(reference, push=True)[-1]
        same = origin is not None and origin.domain == reference.domain
        self._mounts = (origin.path,) if origin is not None and same else ()

    async def has_document(self, document: FetchedDocument) -> bool:
        """True if the registry has *document* already."""
        wanted = Reference(self._reference.domain, self._reference.path, None, document.digest)
        try:
            found = await reading.head_manifest(self._session, self._place, wanted)
        except ImageNotFoundError:
            return False
        return found is not None

    async def put_blob(self, content: Content) -> str:
        """Push a blob, or mount it from another repository there; return how it got there."""
        return await push_blob(self._session, self._place, content, mount_from=self._mounts)

    async def put_document(self, document: FetchedDocument, top: bool) -> None:
        """Push a manifest or index; the top one under the tag of the reference, if it has one."""
        reference = self._reference
        if not top or reference.digest is not None:
            reference = Reference(reference.domain, reference.path, None, document.digest)
        await push_manifest(self._session, self._place, reference, document)


class LayoutSource:
    """An image in an image directory: by tag, by digest, or the only one."""

    def __init__(self, directory: str | Path, tag: str | None = None, digest: str | None = None) -> None:
        self._directory, self._tag, self._digest = Path(directory), tag, digest
        self.name: str = f"oci:{directory}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")

    async def top(self) -> FetchedDocument:
        """Read the manifest or index that the reference means."""
        return await in_thread(self._top)

    def _top(self) -> FetchedDocument:
        if self._digest is not None:
            return self._read(self._digest)
        try:
            raw = (self._directory / "index.json").read_bytes()
        except OSError as error:
            raise ImageNotFoundError(self.name, reason=error.strerror or "") from None
        entries = parse_index(raw, str(self._directory / "index.json")).manifests
        found = [entry for entry in entries if self._tag is None or entry.tag == self._tag]
        if len({entry.digest for entry in found}) != 1:
            tags = sorted({entry.tag for entry in entries if entry.tag})[:12]
            reason = f"there are: {', '.join(tags)}" if tags else "no entry has a tag"
            if found:
                raise OciError(self.name, f"there are several images, say which with a tag; {reason}")
            raise ImageNotFoundError(self.name, reason=f"there is no such tag; {reason}")
        return self._read(found[0].digest, found[0].media_type)

    async def document(self, digest: str) -> FetchedDocument:
        """Read the manifest or index with *digest*, which is checked."""
        return await in_thread(lambda: self._read(digest))

    def _read(self, digest: str, media_type: str | None = None) -> FetchedDocument:
        what = f"manifest {digest}"
        try:
            with open(_blob_path(self._directory, digest), "rb") as file:
                raw = file.read(DOCUMENT_LIMIT + 1)
        except FileNotFoundError:
            raise ImageNotFoundError(self.name, reason=f"{digest} is missing") from None
        verify_content(what, raw, digest)
        document = parse_json(raw, what)
        stated = document.get("mediaType", str)
        kind = OCI_INDEX_TYPE if "manifests" in document.members else OCI_MANIFEST_TYPE
        found = stated or media_type or kind
        if found not in INDEX_TYPES | MANIFEST_TYPES:
            raise OciError(what, "it is neither manifest nor index")
        return FetchedDocument(digest, found, raw)

    def content(self, descriptor: Descriptor) -> Content:
        """Return the blob of *descriptor* as content of its file."""
        return from_file(descriptor.digest, descriptor.size, _blob_path(self._directory, descriptor.digest))

    async def referrers(self, digest: str) -> AsyncIterator[Descriptor]:
        """Yield the descriptors in the layout of what refers to *digest*."""
        for found in await in_thread(lambda: self._referring(digest)):
            yield found

    def _referring(self, digest: str) -> list[Descriptor]:
        """Entries of index.json whose manifests have that subject."""
        raw = (self._directory / "index.json").read_bytes()
        entries = parse_index(raw, str(self._directory / "index.json")).manifests
        found = []
        for entry in entries:
            if entry.media_type in MANIFEST_TYPES:
                subject = parse_json(self._read(entry.digest).raw, entry.digest).child("subject")
                if subject is not None and subject.get("digest", str) == digest:
                    found.append(entry)
        return found


class LayoutDestination:
    """A name in an image directory, which is made if needed.  Nothing is made durable."""

    def __init__(self, directory: str | Path, tag: str | None = None) -> None:
        self._directory, self._tag = Path(directory), tag

    async def has_document(self, document: FetchedDocument) -> bool:
        """True if the layout has *document* already."""
        return await in_thread(_blob_path(self._directory, document.digest).exists)

    async def put_blob(self, content: Content) -> str:
        """Write a blob by an atomic rename; return how it got there."""
        path = _blob_path(self._directory, content.digest)
        if await in_thread(path.exists):
            return "present"
        await in_thread(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        hasher = hashlib.new(content.digest.partition(":")[0])
        file = await in_thread(lambda: open(temporary, "wb"), discard=lambda late: late.close())  # noqa: SIM115
        try:
            with file:
                async for piece in content.read(0, content.size):
                    await in_thread(partial(file.write, piece))
                    hasher.update(piece)
            found = f"{content.digest.partition(':')[0]}:{hasher.hexdigest()}"
            if found != content.digest:
                raise DigestMismatchError(f"blob {content.digest}", content.digest, found)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return "uploaded"

    async def put_document(self, document: FetchedDocument, top: bool) -> None:
        """Write a manifest or index; the top one is listed in ``index.json``."""
        await in_thread(lambda: self._put_document(document, top))

    def _put_document(self, document: FetchedDocument, top: bool) -> None:
        path = _blob_path(self._directory, document.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, document.raw)
        if not top:
            return
        _write(self._directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        path = self._directory / "index.json"
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": []}
        if path.exists():
            parse_index(path.read_bytes(), str(path))
            index = json.loads(path.read_bytes())
        entry: dict[str, Any] = {
            "mediaType": document.media_type,
            "digest": document.digest,
            "size": len(document.raw),
            **({"annotations": {REF_NAME: self._tag}} if self._tag else {}),
        }

        def replaced(other: dict[str, Any]) -> bool:
            tag = (other.get("annotations") or {}).get(REF_NAME)
            return tag == self._tag and (self._tag is not None or other.get("digest") == document.digest)

        index["manifests"] = [*(each for each in index["manifests"] if not replaced(each)), entry]
        _write(path, json.dumps(index).encode())


def _blob_path(directory: Path, digest: str) -> Path:
    try:
        algorithm, _, digits = check_digest(digest).partition(":")
    except ValueError as error:
        raise OciError(str(directory), str(error)) from None
    return directory / "blobs" / algorithm / digits


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
