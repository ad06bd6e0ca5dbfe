"""What is read from a registry, but for large blobs: manifests, small blobs, listings (OCI distribution specification).

Owns the requests and the checks of their answers.  Does not own redirects, access and attempts (`exchange`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from ..errors import AuthenticationError, DigestMismatchError, ImageNotFoundError, OciError, RegistryError
from ..oci.documents import INDEX_TYPES, Descriptor, parse_index
from ..oci.jsondoc import parse_json
from .answers import RateStatus
from .exchange import Request, repository_path
from .links import next_page
from .manifests import ACCEPT, MANIFEST_LIMIT, FetchedDocument, check_document, digest_of
from .reference import Reference, check_digest
from .session import Place, Session

__all__ = [
    "Resolved",
    "catalog",
    "head_blob",
    "head_manifest",
    "manifest",
    "ping",
    "rate_limit",
    "referrers",
    "referrers_fallback",
    "referrers_tag",
    "small_blob",
    "tags",
]

_PAGE_LIMIT = 4 << 20
_PAGES = 10_000
_PAGE_SIZE = 1000
"""Entries; more is refused by some."""
_OK, _OK_OR_MISSING = frozenset({200}), frozenset({200, 404, 405, 400})


@dataclass(frozen=True, slots=True)
class Resolved:
    """The manifest that a name led to when a registry was asked, as far as a HEAD tells."""

    reference: str
    host: str
    digest: str
    media_type: str
    """Empty if the registry does not say."""
    size: int | None


# -- manifests ---------------------------------------------------------------------------------


def _manifest_request(place: Place, reference: Reference, method: str) -> Request:
    return Request(
        f"manifest {reference}",
        place.endpoint,
        method,
        repository_path(place.path, f"manifests/{reference.which}"),
        place.path,
        place.scopes(),
        {"Accept": ACCEPT},
    )


async def head_manifest(session: Session, place: Place, reference: Reference) -> Resolved | None:
    """Ask for the digest alone, which is not counted as a pull; None if the registry does not tell it so."""
    request = _manifest_request(place, reference, "HEAD")
    reply = await session.exchange.fetch(request, 0, fine=_OK_OR_MISSING)
    stated = reply.get("docker-content-digest")
    if reply.status != 200 or stated is None:
        return None
    try:
        digest = check_digest(stated)
    except ValueError:
        return None
    if reference.digest is not None and digest != reference.digest:
        return None
    media_type = (reply.get("content-type") or "").partition(";")[0].strip().lower()
    return Resolved(str(reference), place.endpoint.host, digest, media_type, reply.response.content_length)


async def manifest(session: Session, place: Place, reference: Reference) -> FetchedDocument:
    """A manifest or index, checked; asked for twice if the first time it was damaged.

    Raises:
        ImageNotFoundError, DigestMismatchError, OciError, RegistryError, AuthenticationError, TransportError
    """
    try:
        return await _manifest(session, place, reference)
    except DigestMismatchError:
        return await _manifest(session, place, reference)


async def _manifest(session: Session, place: Place, reference: Reference) -> FetchedDocument:
    request = _manifest_request(place, reference, "GET")
    try:
        reply = await session.exchange.fetch(request, MANIFEST_LIMIT)
    except ImageNotFoundError as error:
        if reference.domain == "docker.io" and reference.tag and reference.tag.isdigit():
            hint = f"{error.reason}; a host with a port needs a repository: docker://HOST:PORT/NAME"
            raise ImageNotFoundError(error.name, reason=hint) from None
        raise
    return check_document(
        f"manifest {reference}",
        reply.body,
        wanted=reference.digest,
        stated=reply.get("docker-content-digest"),
        content_type=reply.get("content-type"),
        host=reply.response.host,
    )


# -- blobs -------------------------------------------------------------------------------------


async def small_blob(session: Session, place: Place, digest: str, limit: int, size: int | None = None) -> bytes:
    """A whole blob, checked; twice if the first time it was damaged.

    Args:
        limit: in bytes.
        size: that it must have, if that is known.

    Raises:
        DigestMismatchError, ImageNotFoundError, RegistryError, AuthenticationError, TransportError
    """
    what = f"blob {check_digest(digest)} of {place.name}"
    request = Request(
        what, place.endpoint, "GET", repository_path(place.path, f"blobs/{digest}"), place.path, place.scopes()
    )
    for attempt in (1, 2):
        reply = await session.exchange.fetch(request, limit)
        if size is not None and len(reply.body) != size:
            message = f"the registry says {len(reply.body)} bytes, the manifest {size}"
            raise RegistryError(what, reply.status, "", host=reply.response.host, message=message)
        found = digest_of(reply.body, digest.partition(":")[0])
        if found == digest:
            return reply.body
        if attempt == 2:
            raise DigestMismatchError(what, digest, found, reply.response.host)
    raise AssertionError


async def head_blob(session: Session, place: Place, digest: str, actions: str = "pull") -> int | None:
    """The size of a blob, or -1 if it is there and the registry does not tell; None if it is not there."""
    request = Request(
        f"blob {check_digest(digest)} of {place.name}",
        place.endpoint,
        "HEAD",
        repository_path(place.path, f"blobs/{digest}"),
        place.path,
        place.scopes(actions),
    )
    reply = await session.exchange.fetch(request, 0, fine=frozenset({200, 404}))
    if reply.status == 404:
        return None
    return reply.response.content_length if reply.response.content_length is not None else -1


# -- listings ----------------------------------------------------------------------------------


async def tags(session: Session, place: Place) -> AsyncGenerator[str, None]:
    """All tags of a repository, in the registry's order, each once."""
    target = repository_path(place.path, f"tags/list?n={_PAGE_SIZE}")
    async with aclosing(_listed(session, place, f"tags of {place.name}", target, "tags", place.scopes())) as found:
        async for tag in found:
            yield tag


async def catalog(session: Session, place: Place) -> AsyncGenerator[str, None]:
    """All repositories of a registry, if it tells."""
    what = f"catalog of {place.endpoint.host}"
    target = f"/v2/_catalog?n={_PAGE_SIZE}"
    try:
        async with aclosing(_listed(session, place, what, target, "repositories", ("registry:catalog:*",))) as found:
            async for name in found:
                yield name
    except (ImageNotFoundError, AuthenticationError) as error:
        raise RegistryError(
            what, 0, "", host=place.endpoint.host, message=f"it lists no repositories, as many do not: {error}"
        ) from None


async def _listed(
    session: Session, place: Place, what: str, target: str, key: str, scopes: tuple[str, ...]
) -> AsyncGenerator[str, None]:
    seen: set[str] = set()
    async with aclosing(_pages(session, place, what, target, scopes)) as pages:
        async for body in pages:
            for name in parse_json(body, what, limit=_PAGE_LIMIT).list_of(key, str) or ():
                if name not in seen:
                    seen.add(name)
                    yield name


async def _pages(
    session: Session, place: Place, what: str, target: str, scopes: tuple[str, ...]
) -> AsyncGenerator[bytes, None]:
    asked: set[str] = set()
    while target not in asked and len(asked) < _PAGES:
        asked.add(target)
        request = Request(what, place.endpoint, "GET", target, place.path, scopes)
        reply = await session.exchange.fetch(request, _PAGE_LIMIT)
        yield reply.body
        try:
            following = next_page(reply.response.get_all("link"), target)
        except ValueError as error:
            raise RegistryError(what, reply.status, "", host=reply.response.host, message=str(error)) from None
        if following is None:
            return
        target = following
    raise RegistryError(what, 0, "", host=place.endpoint.host, message="its pages have no end")


async def referrers(
    session: Session, place: Place, reference: Reference, artifact_type: str | None = None
) -> AsyncGenerator[Descriptor, None]:
    """What refers to the manifest *reference*, which has a digest; by the API, or by the tag that stands in for it.

    Args:
        artifact_type: only what has this one.
    """
    assert reference.digest is not None
    what = f"referrers of {reference}"
    query = f"?artifactType={artifact_type}" if artifact_type else ""
    target = repository_path(place.path, f"referrers/{reference.digest}{query}")
    try:
        async with aclosing(_pages(session, place, what, target, place.scopes())) as pages:
            async for body in pages:
                for each in _index_entries(what, body):
                    if artifact_type in (None, each.artifact_type):
                        yield each
    except ImageNotFoundError:
        pass
    else:
        return
    try:
        listed = await referrers_tag(session, place, reference)
    except OciError:
        return
    for each in listed:
        if artifact_type in (None, each.artifact_type):
            yield each


async def referrers_tag(session: Session, place: Place, reference: Reference) -> tuple[Descriptor, ...]:
    """The entries of the index at the tag that stands in for the API; none if there is no such index."""
    _, raw, _ = await referrers_fallback(session, place, reference)
    return _index_entries(f"referrers of {reference}", raw) if raw else ()


async def referrers_fallback(session: Session, place: Place, subject: Reference) -> tuple[str, bytes, str | None]:
    """The index at the tag that stands in for the API: the tag, the bytes (none if there is none), and its ETag.

    Raises:
        OciError: something else has that tag.
    """
    assert subject.digest is not None
    algorithm, _, digits = subject.digest.partition(":")
    tag = f"{algorithm[:32]}-{digits[:64]}"
    request = _manifest_request(place, Reference(subject.domain, subject.path, tag), "GET")
    try:
        reply = await session.exchange.fetch(request, MANIFEST_LIMIT)
    except ImageNotFoundError:
        return tag, b"", None
    _index_entries(f"referrers of {subject}", reply.body)
    return tag, reply.body, reply.get("etag")


def _index_entries(what: str, body: bytes) -> tuple[Descriptor, ...]:
    media_type = parse_json(body, what, limit=_PAGE_LIMIT).get("mediaType", str)
    if media_type not in (None, *INDEX_TYPES):
        raise OciError(what, "it is not an index")
    return parse_index(body, what, limit=_PAGE_LIMIT).manifests


# -- the registry itself -----------------------------------------------------------------------


async def ping(session: Session, place: Place) -> str:
    """Ask whether there is a registry, with credentials if it wants some; what it calls its protocol.

    Raises:
        RegistryError: it is something else.
        AuthenticationError, TransportError
    """
    host = place.endpoint.host
    request = Request(f"registry {host}", place.endpoint, "GET", "/v2/", place.path)
    try:
        reply = await session.exchange.fetch(request, 64 << 10)
    except (ImageNotFoundError, RegistryError) as error:
        status = error.status if isinstance(error, RegistryError) else 404
        reason = error.message if isinstance(error, RegistryError) else error.reason
        raise RegistryError(f"registry {host}", status, "", host=host, message=f"not a registry: {reason}") from None
    return reply.get("docker-distribution-api-version") or "registry/2.0"


async def rate_limit(session: Session, place: Place, reference: Reference) -> RateStatus | None:
    """How often the registry may be asked; None if it does not say."""
    await head_manifest(session, place, reference)
    return next(iter(session.exchange.rates.values()), None)
