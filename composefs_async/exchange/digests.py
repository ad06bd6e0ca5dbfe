"""Canonical bytes, their digests, and where a store keeps what has a digest; no I/O."""

from __future__ import annotations

import hashlib
import json
import re

from ..digest import check_content_digest
from ..errors import DigestMismatchError, FormatError

__all__ = ["blob_key", "canonical", "check_digest", "digest_of", "verify"]

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


def canonical(value: object) -> bytes:
    """JSON with sorted keys and without blanks, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: bytes) -> str:
    """The digest by which the store knows *content*."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def verify(what: str, content: bytes, digest: str) -> bytes:
    """Return *content* if it has that digest.

    Raises:
        DigestMismatchError
    """
    if (found := digest_of(content)) != digest:
        raise DigestMismatchError(f"{what} {digest}", digest, found)
    return content


def check_digest(digest: str) -> str:
    """Return *digest* if it is one of a store: sha256, lower-case hexadecimal.

    Raises:
        FormatError
    """
    if not _SHA256.fullmatch(check_content_digest(digest)):
        raise FormatError(f"not a sha256 digest: {digest!r}")
    return digest


def blob_key(digest: str) -> str:
    """The key of a blob in a store."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
