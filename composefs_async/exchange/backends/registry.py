"""A store in a registry: each name is a tag of one repository, each blob a blob of it.

Owns what stands for what.  The protocol has no compare-and-swap: a tag is compared, and then written, so that of two
writers at the same moment the later one wins; garbage is collected by the registry.  Calls come from worker threads of
AnyIO and run on the event loop, to which a handle belongs that has been used once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import from_thread

from ...digest import Algorithm
from ...errors import (
    AuthenticationError,
    BlobMissingError,
    DigestMismatchError,
    FormatError,
    NotFoundError,
    RegistryError,
    StoreError,
    TransportError,
)
from ..condemned import DESCRIPTION_KEY, Description
from ..documents import (
    MANIFEST_TYPE,
    Manifest,
    encode_ref,
    name_of_ref,
    parse_manifest,
    parse_ref,
)
from .base import BlobInfo, Buffer, PreconditionError, ReadOnlyStoreError, Stored, TransientError, Version

if TYPE_CHECKING:
    from ...registry.client import RegistryClient

__all__ = ["RegistryStore"]

_PIECE = 8 << 20
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # distribution specification, "Pulling manifests"
_REFERRERS = re.compile(r"sha256-[0-9a-f]{64}")  # the same, "Referrers Tag Schema"
_BLOBS = "blobs/sha256/"
_NOTHING = ("gc/", "oci-layout", "index.json")
"""Keys that a registry has no place for."""


class RegistryStore:
    """The store in the repository ``docker://HOST/NAME``."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self.url: str = url.rstrip("/")
        if endpoint or "@" in self.url or not re.fullmatch(r"docker://[^/]+/.+", self.url):
            raise StoreError("docker://", "a store in a registry is spelled docker://HOST/NAME")
        self._client: RegistryClient | None = None
        self._sizes: dict[str, int] = {}
        """Of blobs, as far as manifests have told."""
        self._manifests: dict[str, bytes] = {}
        """That are to be pushed under a tag: in a registry a manifest is no blob."""

    # -- reading -------------------------------------------------------------------------------

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a blob, or *length* bytes of it from *start* on, by ranges."""
        digest = _digest(key)
        if digest in self._manifests:
            yield self._manifests[digest]
            return
        size = self._sizes.get(digest)
        if size is None:
            info = self.head(key)
            if info is None:
                manifest = self._manifest(f"@{digest}")
                if manifest is None:
                    raise BlobMissingError(self.url, key)
                yield manifest.raw
                return
            size = info.size
        end = size if length is None else min(size, start + length)
        for at in range(start, end, _PIECE):
            yield self._ask(key, self._range, digest, size, at, min(end, at + _PIECE))

    def read(self, key: str, limit: int) -> Stored | None:
        """Return a blob, or the reference that the tag of *key* stands for; None if it is missing."""
        if key == DESCRIPTION_KEY:
            return None
        if key.startswith(_NOTHING):
            return None
        if key.startswith(_BLOBS):
            return Stored(b"".join(self.get(key)), "", 0.0)
        name = name_of_ref(key)
        manifest = self._manifest(f":{_tag(name)}")
        if manifest is None:
            return None
        # Every reading of the same tag gives the same reference.
        return Stored(encode_ref(name, manifest, write_id=manifest.digest), manifest.digest, 0.0)

    def head(self, key: str) -> BlobInfo | None:
        """Return the size of a blob; None if it is missing."""
        digest = _digest(key)
        size = self._ask(key, self._size, digest)
        if size is None:
            return None
        return BlobInfo(key, self._sizes.get(digest, 0) if size < 0 else size, 0.0)

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """Yield the tags as references; the blobs of a registry cannot be listed."""
        if not prefix.startswith("refs/"):
            raise ReadOnlyStoreError(self.url, "the blobs of a registry cannot be listed")
        tags = sorted(f"refs/{tag}" for tag in self._ask(prefix, self._tags) if not _REFERRERS.fullmatch(tag))
        return iter([BlobInfo(tag, 0, 0.0) for tag in tags if tag.startswith(prefix) and tag > after])

    # -- writing -------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer | Path) -> None:
        """Push a blob; a manifest waits for its tag, and other keys are not stored."""
        if not key.startswith(_BLOBS):
            return
        digest = _digest(key)
        if not isinstance(data, Path):
            raw = bytes(data)
            if raw.startswith(b"{"):
                with suppress(FormatError, DigestMismatchError):
                    self._remember(parse_manifest(raw, digest))
                    self._manifests[digest] = raw
                    return
            self._sizes[digest] = len(raw)
            self._ask(key, self._push_bytes, raw)
            return
        size = self._sizes[digest] = data.stat().st_size
        self._ask(key, self._push_file, digest, size, data)

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Tag a manifest if the tag still has the version *expected*."""
        name = name_of_ref(key)
        ref = parse_ref(data, name)
        if ref.deleted:
            raise ReadOnlyStoreError(self.url, "a name is removed from a registry with the registry's own tools")
        found = self.read(key, 1 << 20)
        if (found.version if found else None) != expected:
            raise PreconditionError(self.url, f"{key} has changed")
        raw = ref.manifest or self._manifests.get(ref.digest)
        if raw is None:
            raise StoreError(self.url, f"the manifest {ref.digest} has not been put")
        self._ask(key, self._push_manifest, _tag(name), raw)
        return ref.digest

    def delete(self, keys: Sequence[str]) -> None:
        """Raise `ReadOnlyStoreError`: the registry collects its own garbage."""
        raise ReadOnlyStoreError(self.url, "garbage of a registry is collected by the registry")

    def describe(self, algorithm: Algorithm | None) -> Description:
        """What a registry is as a store: it has no description of its own."""
        return Description("", algorithm or Algorithm.SHA512)

    def close(self) -> None:
        """Close the connections to the registry; a second call does nothing."""
        if self._client is not None:
            client, self._client = self._client, None
            from_thread.run(client.__aexit__, None, None, None)

    # -- on the event loop ---------------------------------------------------------------------

    def _opened(self) -> RegistryClient:
        if self._client is None:
            try:
                from ...registry.client import RegistryClient
            except ImportError as error:
                raise StoreError(
                    self.url, f"{error.name} is not installed; install composefs-async[registry]"
                ) from None
            client = RegistryClient()
            from_thread.run(client.__aenter__)
            self._client = client
        return self._client

    def _ask(self, key: str, function: Any, *arguments: Any) -> Any:
        client = self._opened()
        try:
            return from_thread.run(function, client, *arguments)
        except NotFoundError:
            raise BlobMissingError(self.url, key) from None
        except RegistryError as error:
            if error.status == 404:
                raise BlobMissingError(self.url, key) from None
            kind = TransientError if error.status >= 500 or error.status == 429 else StoreError
            raise kind(self.url, f"{key}: {error}") from None
        except AuthenticationError as error:
            raise StoreError(self.url, f"{key}: {error}") from None
        except TransportError as error:
            if isinstance(error, StoreError):
                raise
            raise TransientError(self.url, f"{key}: {error}") from None

    async def _range(self, client: RegistryClient, digest: str, size: int, start: int, end: int) -> bytes:
        return await client.blob_range(self.url, digest, size, start, end)

    async def _size(self, client: RegistryClient, digest: str) -> int | None:
        return await client.blob_size(self.url, digest)

    async def _tags(self, client: RegistryClient) -> Sequence[str]:
        return [tag async for tag in client.tags(self.url)]

    async def _push_bytes(self, client: RegistryClient, raw: bytes) -> None:
        await client.push_blob(self.url, raw)

    async def _push_file(self, client: RegistryClient, digest: str, size: int, path: Path) -> None:
        from ...registry.content import from_file

        await client.push_blob(self.url, from_file(digest, size, path))

    async def _push_manifest(self, client: RegistryClient, tag: str, raw: bytes) -> None:
        await client.push_manifest(f"{self.url}:{tag}", raw, MANIFEST_TYPE)

    def _manifest(self, suffix: str) -> Manifest | None:
        async def ask(client: RegistryClient) -> bytes:
            return (await client.manifest(self.url + suffix)).raw

        try:
            raw: bytes = self._ask(suffix, ask)
        except BlobMissingError:
            return None
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        manifest = parse_manifest(raw, digest)
        self._remember(manifest)
        return manifest

    def _remember(self, manifest: Manifest) -> None:
        for each in (manifest.config, manifest.table, *manifest.blobs):
            self._sizes[each.digest] = each.size


def _digest(key: str) -> str:
    return f"sha256:{key.removeprefix(_BLOBS)}"


def _tag(name: str) -> str:
    """The tag of a name: itself where it can be one."""
    return name if _TAG.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()
