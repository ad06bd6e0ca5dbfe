"""Manifests and indexes as registries serve them: what is accepted, and how it is checked; no I/O.

Owns the agreement of bytes, digests and media types.  Does not own what the documents say (`oci.documents`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from ..errors import DigestMismatchError, OciError
from ..oci.documents import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE
from ..oci.jsondoc import brief, parse_json
from .reference import check_digest

__all__ = ["ACCEPT", "MANIFEST_LIMIT", "FetchedDocument", "check_document", "digest_of"]

MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest or index (OCI distribution specification, "Pushing Manifests")."""
ACCEPT = ", ".join(
    (
        OCI_MANIFEST_TYPE,
        OCI_INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_OLD = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_VAGUE = frozenset({"", "application/octet-stream", "text/plain", "application/json"})


@dataclass(frozen=True, slots=True)
class FetchedDocument:
    """A manifest or an index, whose bytes have the digest."""

    digest: str
    media_type: str
    raw: bytes = field(repr=False)
    host: str = ""
    """That has sent it."""

    @property
    def is_index(self) -> bool:
        """True if the document lists manifests of platforms."""
        return self.media_type in INDEX_TYPES


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """The digest of *content*."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def check_document(
    what: str, raw: bytes, *, wanted: str | None, stated: str | None, content_type: str | None, host: str
) -> FetchedDocument:
    """Check a manifest that has come.

    Args:
        wanted: the digest that was asked for, if one was.
        stated: ``Docker-Content-Digest``, if it was there.
        content_type: ``Content-Type``, if it was there.

    Raises:
        DigestMismatchError: the bytes are not what was asked for, or were damaged on their way.
        OciError: it is no manifest, or says two things at once.
    """
    digest = _digest(what, raw, wanted, stated, host)
    given = (content_type or "").partition(";")[0].strip().lower()
    if given in _OLD:
        raise OciError(what, "images in the format of 2016 and before (schema 1) are not supported")
    document = parse_json(raw, what, limit=MANIFEST_LIMIT)
    if document.get("schemaVersion", int) == 1:
        raise OciError(what, "images in the format of 2016 and before (schema 1) are not supported")
    said = document.get("mediaType", str) or ""
    is_index, is_manifest = "manifests" in document.members, "layers" in document.members
    if is_index and is_manifest:
        raise OciError(what, "it has manifests and layers, so that it is two kinds of document at once")
    if said and given not in _VAGUE and said != given:
        raise OciError(what, f"it calls itself {brief(said)}, the registry {brief(given)}")
    media_type = said or ("" if given in _VAGUE else given)
    if not media_type and (is_index or is_manifest):
        media_type = OCI_INDEX_TYPE if is_index else OCI_MANIFEST_TYPE
    if media_type not in INDEX_TYPES | MANIFEST_TYPES:
        raise OciError(what, f"it is neither manifest nor index but {brief(media_type or 'something else')}")
    return FetchedDocument(digest, media_type, raw, host)


def _digest(what: str, raw: bytes, wanted: str | None, stated: str | None, host: str) -> str:
    if wanted is not None:
        found = digest_of(raw, wanted.partition(":")[0])
        if found != wanted:
            raise DigestMismatchError(what, wanted, found, host)
        return wanted
    try:
        claimed = check_digest(stated or "")
    except ValueError:
        return digest_of(raw)
    found = digest_of(raw, claimed.partition(":")[0])
    if found != claimed:
        raise DigestMismatchError(what, claimed, found, host)
    return found
