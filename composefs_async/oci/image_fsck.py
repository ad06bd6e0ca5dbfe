"""Checking the images that have tags: documents, layers and EROFS images, on top of the check of the repository.

Owns what composefs-rs's ``oci fsck`` looks at, with its kinds and texts, and what is beyond it: whether layers are
what their diff_ids say, and whether the EROFS images have their names.  Does not own checking the repository
(`Repository.fsck`), whose findings on layers are told again for each image that has them.

What is damaged is in the result, never raised.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._repo import publish as _names
from .._sys.errnos import is_unread
from ..digest import ObjectId
from ..errors import ComposefsError, FormatError
from ..findings import Finding
from ..naming import (
    IMAGE_REFS,
    TAGS,
    config_ref,
    config_stream,
    decode_tag,
    digest_of_manifest_stream,
    layer_stream,
    manifest_stream,
)
from ..progress import ProgressCallback
from ..repository import Repository, state_of
from ..results import FsckResult
from ..splitstream import OCI_CONFIG, OCI_MANIFEST, SplitstreamReader
from .documents import ImageConfig, Manifest, content_hasher, parse_config, parse_manifest
from .jsondoc import DOCUMENT_LIMIT

__all__ = ["OciFsckResult", "checked_tags", "fsck", "fsck_async"]

_SEAL = "containers.composefs.fsverity"
"""The label of January 2026 that has the id of the image's EROFS image."""
_DAMAGED = (ComposefsError, OSError)


@dataclass(frozen=True, slots=True)
class OciFsckResult:
    """What a check of images looked at and found."""

    repo: FsckResult
    images_checked: int = 0
    images_corrupted: int = 0
    findings: tuple[Finding, ...] = ()
    """In the order of tags; their paths are those of the tags."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, in the images and in the repository."""
        return self.repo.ok and not self.findings


@operation
def fsck(
    repo: Repository,
    name: str | None = None,
    *,
    metadata_only: bool = False,
    resume: bool = False,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> OciFsckResult:
    """Check the repository, and then the images that have tags, or the one with the tag *name*.  Blocks."""
    found = repo.fsck(metadata_only=metadata_only, resume=resume, limit=limit, progress=progress)
    return _check_images(repo, name, found)


@async_operation
async def fsck_async(
    repo: Repository,
    name: str | None = None,
    *,
    metadata_only: bool = False,
    resume: bool = False,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> OciFsckResult:
    """Check the repository and its images, as `fsck` does, in worker threads; a cancellation ends it soon."""
    found = await repo.fsck_async(metadata_only=metadata_only, resume=resume, limit=limit, progress=progress)
    return await hop(_check_images, repo, name, found)


def _check_images(repo: Repository, name: str | None, found: FsckResult) -> OciFsckResult:
    tags = checked_tags(repo)
    if name is not None:
        if name not in tags:
            path = f"streams/refs/{TAGS}"
            missing = Finding("ref-resolve-failed", path, name=name, detail=f"OCI reference not found: {name}")
            return OciFsckResult(found, 1, 1, (missing,))
        tags = {name: tags[name]}
    wrong = {(each.name, each.object_id): each for each in found.findings if each.kind == "named-stream-invalid"}
    wrong |= {(each.path, None): each for each in found.findings if each.kind in _LAYER_KINDS}
    checks = [_ImageCheck(repo, tag, path, wrong) for tag, (path, _) in sorted(tags.items())]
    for each in checks:
        each.run(tags[each.tag][1])
    findings = tuple(finding for each in checks for finding in dict.fromkeys(each.findings))
    return OciFsckResult(found, len(checks), sum(bool(each.findings) for each in checks), findings)


def checked_tags(repo: Repository) -> dict[str, tuple[str, str]]:
    """Path and manifest digest by tag; what leads to anything but a manifest is no tag."""
    found = {}
    for reference, stream in repo.named_streams(TAGS):
        digest = digest_of_manifest_stream(stream)
        if digest is not None and "/" not in reference:
            found[decode_tag(reference)] = (f"streams/refs/{TAGS}/{reference}", digest)
    return found


_LAYER_KINDS = {"stream-digest-mismatch": "layer-digest-mismatch", "stream-tail-missing": "layer-tail-missing"}


class _Broken(Exception):  # noqa: N818
    """What is wrong is among the findings, and nothing more can be said of the image."""


class _ImageCheck:
    """One image."""

    def __init__(
        self, repo: Repository, tag: str, path: str, wrong: Mapping[tuple[str, ObjectId | None], Finding]
    ) -> None:
        self.tag = tag
        self.findings: list[Finding] = []
        self._repo, self._path = repo, path
        self._wrong = wrong
        """Streams of layers that are not: by reference and object, and by path."""

    def run(self, manifest_digest: str) -> None:
        if self.tag.startswith("@"):
            self._found("invalid-ref-name")
            return
        try:
            manifest, refs = self._manifest(manifest_digest)
            config_id = refs.get(config_ref(manifest.config.digest))
            if config_id is None:
                raise self._broken("config-ref-missing", digest=manifest.config.digest)
            config, config_refs = self._config(manifest, config_id)
        except _Broken:
            return
        if config is None:
            self._check_artifact(manifest, refs)
            return
        for diff_id in config.diff_ids:
            self._check_layer(diff_id, config_refs)
        self._check_erofs(config, config_refs)

    def _found(self, kind: str, error: Exception | None = None, **fields: Any) -> None:
        unread = isinstance(error, OSError) and is_unread(error)
        self.findings.append(Finding(kind, self._path, name=self.tag, **fields, unread=unread))

    def _broken(self, kind: str, error: Exception | None = None, **fields: str) -> _Broken:
        self._found(kind, error, **fields)
        return _Broken()

    # -- documents -----------------------------------------------------------------------------

    def _manifest(self, digest: str) -> tuple[Manifest, dict[str, ObjectId]]:
        raw, refs = self._document("manifest", manifest_stream(digest), None, OCI_MANIFEST, digest)
        try:
            return parse_manifest(raw, digest), refs
        except FormatError as error:
            raise self._broken("manifest-parse-failed", detail="Parsing manifest", cause=str(error)) from None

    def _config(self, manifest: Manifest, config_id: ObjectId) -> tuple[ImageConfig | None, dict[str, ObjectId]]:
        digest = manifest.config.digest
        raw, refs = self._document("config", config_stream(digest), config_id, OCI_CONFIG, digest)
        try:
            return parse_config(raw, digest) if manifest.is_container else None, refs
        except FormatError as error:
            raise self._broken("config-parse-failed", detail="Parsing config", cause=str(error)) from None

    def _document(
        self, what: str, stream: str, stream_id: ObjectId | None, content_type: int, digest: str
    ) -> tuple[bytes, dict[str, ObjectId]]:
        """Payload and named references of a stream, the payload compared with its digest."""
        try:
            reader = self._repo.open_stream(stream, stream_id, content_type)
        except _DAMAGED as error:
            detail = f"Opening stream '{stream}'"
            raise self._broken(f"{what}-read-failed", error, detail=detail, cause=str(error)) from None
        with reader:
            try:
                raw = self._payload(reader)
            except _DAMAGED as error:
                where = f"Reading object {reader.object_refs[0].text} into memory" if reader.object_refs else "Reading"
                raise self._broken(f"{what}-read-failed", error, detail=where, cause=str(error)) from None
            hasher = content_hasher(what, digest)
            hasher.update(raw)
            measured = f"{digest.partition(':')[0]}:{hasher.hexdigest()}"
            if measured != digest:
                raise self._broken(f"{what}-digest-mismatch", expected=digest, measured=measured)
            return raw, dict(reader.named_refs)

    def _payload(self, reader: SplitstreamReader) -> bytes:
        """Without a look at the ids of objects: it is the digest of the document that counts here."""
        return reader.payload(self._object, limit=DOCUMENT_LIMIT)

    def _object(self, object_id: ObjectId) -> Iterable[bytes]:
        with open(self._repo.open_object(object_id), "rb", buffering=0) as file:
            yield file.read(DOCUMENT_LIMIT + 1)

    # -- layers and images ---------------------------------------------------------------------

    def _check_layer(self, diff_id: str, refs: Mapping[str, ObjectId]) -> None:
        if diff_id not in refs:
            self._found("layer-ref-missing", digest=diff_id)
            return
        name, state = layer_stream(diff_id), state_of(self._repo)
        if _names.target_of(state, f"streams/{name}") is None:
            self._found("layer-stream-missing", digest=diff_id)
        elif _names.object_of(state, "streams", name) is None:
            self._found("layer-check-failed", digest=diff_id, detail=f"Checking if stream '{name}' exists")
        elif cause := self._cannot_open(refs[diff_id]):
            detail = f"Opening object {refs[diff_id].text}"
            self._found("layer-object-missing", cause, digest=diff_id, detail=detail, cause=str(cause))
        elif unnamed := self._wrong.get((diff_id, refs[diff_id])):
            self._found("layer-digest-mismatch", digest=diff_id, detail=unnamed.detail)
        elif finding := self._wrong.get((f"streams/{name}", None)):
            what = f"the content has the digest {finding.measured}"
            if finding.kind == "stream-tail-missing":
                what = f"the last {finding.detail} bytes of the tar, all zeros, were not kept"
            self._found(_LAYER_KINDS[finding.kind], digest=diff_id, detail=what)

    def _check_artifact(self, manifest: Manifest, refs: Mapping[str, ObjectId]) -> None:
        for layer in manifest.layers:
            object_id = refs.get(layer.digest)
            if object_id is None:
                self._found("artifact-layer-ref-missing", digest=layer.digest)
            elif cause := self._cannot_open(object_id):
                detail = f"Opening object {object_id.text}"
                fields = {"digest": layer.digest, "detail": detail, "cause": str(cause)}
                self._found("artifact-layer-object-missing", cause, **fields)

    def _check_erofs(self, config: ImageConfig, refs: Mapping[str, ObjectId]) -> None:
        if (sealed := config.labels.get(_SEAL)) is not None and (cause := self._cannot_open_image(sealed)):
            detail = f"Opening image '{sealed}'"
            self._found("seal-image-missing", cause, digest=sealed, detail=detail, cause=str(cause))
        for reference in sorted(refs.keys() & IMAGE_REFS):
            image_id = refs[reference]
            if cause := self._cannot_open_image(image_id.hex()):
                self._found("image-missing", cause, object_id=image_id, detail=f"{reference}: {cause}")

    def _cannot_open(self, object_id: ObjectId) -> Exception | None:
        """Why an object cannot be opened; None if it can."""
        try:
            os.close(self._repo.open_object(object_id))
        except _DAMAGED as error:
            return error
        return None

    def _cannot_open_image(self, image_id: str) -> Exception | None:
        try:
            os.close(self._repo.open_image(image_id))
        except _DAMAGED as error:
            return error
        return None
