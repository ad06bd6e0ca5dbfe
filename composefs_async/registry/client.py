"""`RegistryClient`: a registry's endpoints as methods, for who has no repository.

Owns the public form.  The work is done in `reading`, `content`, `upload` and `copying`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self

from ..oci.documents import Descriptor
from ..oci.jsondoc import DOCUMENT_LIMIT
from ..oci.platforms import Platform
from ..progress import ProgressCallback
from . import reading
from .access import Access, Transfer
from .answers import RateStatus
from .content import Content, from_bytes, stream_blob
from .copying import Copied, copy_image
from .ends import RegistryDestination, RegistrySource
from .manifests import FetchedDocument, digest_of
from .reading import Resolved
from .reference import Reference, parse_reference
from .session import Place, Session
from .signatures import check_signatures
from .upload import How, push_blob, push_manifest

__all__ = ["RegistryClient"]


class RegistryClient:
    """Speaks to registries.

    Use it in an ``async with`` block, which closes its connections::

        async with RegistryClient() as client:
            found = await client.resolve("docker://example.org/a/b:1")
            async for tag in client.tags("docker://example.org/a/b"):
                print(tag)

    References are ``docker://HOST/NAME[:TAG][@DIGEST]``.  Mirrors, credentials and certificates are those that podman
    would use, unless *access* says otherwise.  Methods raise `ImageNotFoundError`, `AuthenticationError`,
    `RegistryError` and other kinds of `TransportError`, `DigestMismatchError`, `OciError` for documents that are not
    valid, and `InvalidNameError` for references that are not.
    """

    def __init__(
        self,
        access: Access | None = None,
        transfer: Transfer | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._access, self._transfer, self._progress = access or Access(), transfer or Transfer(), progress
        self._opened: Session | None = None

    async def __aenter__(self) -> Self:
        self._opened = await Session.open(self._access, self._transfer, self._progress)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.aclose()
            self._opened = None

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise RuntimeError("the client is used outside of its block")
        return self._opened

    # -- reading -------------------------------------------------------------------------------

    async def resolve(self, reference: str) -> Resolved:
        """Ask which manifest *reference* leads to; one HEAD where the registry answers that well."""
        parsed = parse_reference(reference)

        async def ask(place: Place) -> Resolved:
            found = await reading.head_manifest(self._session, place, parsed)
            if found is not None:
                return found
            document = await reading.manifest(self._session, place, parsed)
            return Resolved(str(parsed), place.endpoint.host, document.digest, document.media_type, len(document.raw))

        return (await self._session.first(parsed, ask))[1]

    async def manifest(self, reference: str) -> FetchedDocument:
        """The manifest or index that *reference* names, compared with its digest."""
        return (await self._manifest(parse_reference(reference)))[1]

    async def _manifest(self, parsed: Reference) -> tuple[Place, FetchedDocument]:
        return await self._session.first(parsed, lambda place: reading.manifest(self._session, place, parsed))

    async def check_policy(self, reference: str, digest: str) -> None:
        """Check that policy.json of this machine allows to take *digest* as *reference*.

        Raises:
            ImagePolicyError: it does not.
        """
        parsed = parse_reference(reference)
        policy, demands = await self._session.demands(parsed)
        if policy is not None and demands:
            places = self._session.places(parsed)
            await check_signatures(self._session, places, parsed, digest, policy, demands)

    async def tags(self, reference: str) -> AsyncIterator[str]:
        """All tags of the repository that *reference* is of, in the registry's order."""
        parsed = parse_reference(reference)
        async with aclosing(reading.tags(self._session, self._primary(parsed))) as found:
            async for tag in found:
                yield tag

    async def catalog(self, host: str) -> AsyncIterator[str]:
        """All repositories of the registry on *host*, if it tells; many do not."""
        async with aclosing(reading.catalog(self._session, self._host(host))) as found:
            async for name in found:
                yield name

    async def referrers(self, reference: str, artifact_type: str | None = None) -> AsyncIterator[Descriptor]:
        """What refers to the manifest that *reference* names: signatures, bills of materials.

        Args:
            artifact_type: only what has this one.
        """
        parsed = parse_reference(reference)
        if parsed.digest is None:
            parsed = parsed.with_digest((await self.resolve(reference)).digest)
        async with aclosing(reading.referrers(self._session, self._primary(parsed), parsed, artifact_type)) as found:
            async for each in found:
                yield each

    async def blob(self, reference: str, digest: str, *, limit: int = DOCUMENT_LIMIT) -> bytes:
        """A small blob of the repository that *reference* is of, compared with its digest.

        Args:
            limit: bytes that it may have.
        """
        parsed = parse_reference(reference)
        _, content = await self._session.first(
            parsed, lambda place: reading.small_blob(self._session, place, digest, limit)
        )
        return content

    async def blob_size(self, reference: str, digest: str) -> int | None:
        """The size of a blob in bytes; -1 if the registry has it and does not tell, None if it is not there."""
        parsed = parse_reference(reference)
        return await reading.head_blob(self._session, self._primary(parsed), digest)

    @asynccontextmanager
    async def open_blob(self, reference: str, descriptor: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
        """A blob of any size, in order; valid in the block.

        A connection that breaks is replaced, and the blob goes on.  Before the last piece it has been compared with
        its digest.
        """
        places = self._session.places(parse_reference(reference))
        async with aclosing(stream_blob(self._session, places, descriptor.digest, descriptor.size)) as chunks:
            yield chunks

    async def blob_range(self, reference: str, digest: str, size: int, start: int, end: int) -> bytes:
        """The bytes from *start* to *end* of a blob of *size* bytes; only a whole blob is compared with its digest."""
        places = self._session.places(parse_reference(reference))
        async with aclosing(stream_blob(self._session, places, digest, size, start, end)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def ping(self, host: str) -> str:
        """Ask whether there is a registry on *host* that lets us in; returns what it calls its protocol."""
        return await reading.ping(self._session, self._host(host))

    async def rate_limit(self, reference: str) -> RateStatus | None:
        """How often one may ask the registry, if it says so; costs one HEAD."""
        parsed = parse_reference(reference)
        return await reading.rate_limit(self._session, self._primary(parsed), parsed)

    # -- writing -------------------------------------------------------------------------------

    async def push_blob(self, reference: str, content: Content | bytes, *, mount_from: Sequence[str] = ()) -> How:
        """Bring a blob into the repository that *reference* is of, unless it is there.

        Args:
            mount_from: names of repositories of the same registry that may have it.
        """
        parsed = parse_reference(reference)
        if isinstance(content, bytes):
            content = from_bytes(digest_of(content), content)
        return await push_blob(self._session, self._target(parsed), content, mount_from=mount_from)

    async def push_manifest(self, reference: str, raw: bytes, media_type: str) -> str:
        """Put a manifest or index, whose blobs are there, under the tag of *reference*; returns its digest."""
        parsed = parse_reference(reference)
        document = FetchedDocument(digest_of(raw), media_type, raw)
        await push_manifest(self._session, self._target(parsed), parsed, document)
        return document.digest

    async def copy(
        self,
        source: str,
        destination: str,
        *,
        platform: Platform | None = None,
        referrers: bool = False,
        dry_run: bool = False,
    ) -> Copied:
        """Copy an image between registries, with all that it names; digests stay as they are.

        Args:
            platform: take this one's manifest alone out of an index.
            referrers: copy what refers to it, too.
            dry_run: copy nothing, and tell what there is.
        """
        begin, end = parse_reference(source), parse_reference(destination)
        origin = RegistrySource(self._session, begin)
        target = RegistryDestination(self._session, end, begin)
        return await copy_image(origin, None if dry_run else target, platform=platform, referrers=referrers)

    # -- places --------------------------------------------------------------------------------

    def _primary(self, parsed: Reference) -> Place:
        return self._session.places(parsed)[-1]

    def _target(self, parsed: Reference) -> Place:
        return self._session.places(parsed, push=True)[-1]

    def _host(self, host: str) -> Place:
        parse_reference(f"docker://{host}/x")
        return Place(self._session.host(host), "")
