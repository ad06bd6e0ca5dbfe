"""Blobs and manifests into a registry (OCI distribution specification, "Pushing").

Owns the sessions of uploads, and what is done when one fails.  A blob goes up in one piece, which all registries take;
in several only where that has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, TypeAlias

from anyio import CancelScope, move_on_after

from ..errors import AuthenticationError, ComposefsError, DigestMismatchError, RegistryError
from ..oci.documents import OCI_INDEX_TYPE, parse_manifest
from ..progress import Message
from .content import Content
from .exchange import Reply, Request, repository_path
from .manifests import MANIFEST_LIMIT, FetchedDocument
from .reading import head_blob, referrers_fallback
from .reference import Reference, check_digest
from .retrying import Budget, FailedAttemptError
from .session import Place, Session
from .urls import add_query

__all__ = ["How", "push_blob", "push_manifest"]

How: TypeAlias = Literal["present", "mounted", "uploaded"]

_LARGE = 32 << 20
_CHUNK = 16 << 20
_SMALL_CHUNK = (4 << 20) - (64 << 10)
"""What GitHub takes of a blob at once, if not all of it."""
_COMMIT_TIMEOUT = 600.0
"""Seconds that a registry may take to store what has come."""
_ACTIONS = "pull,push"
_RECEIVED = re.compile(r"(?:bytes=)?0-(\d+)")
Sent: TypeAlias = Callable[[int], object]
"""Hears how many bytes of a blob are gone."""


async def push_blob(
    session: Session,
    place: Place,
    content: Content,
    *,
    mount_from: Sequence[str] = (),
    sent: Sent | None = None,
) -> How:
    """Bring a blob into the repository of *place*, unless it is there.

    Args:
        mount_from: repositories of the same registry that may have it.

    Raises:
        AuthenticationError, RegistryError, TransportError
        whatever reading the content raises
    """
    check_digest(content.digest)
    try:
        size = await head_blob(session, place, content.digest, _ACTIONS)
    except AuthenticationError:
        size = None  # there are tokens that allow to push and not to look
    if size is not None:
        if size not in (-1, content.size):
            message = f"the registry has {size} bytes under this digest, not {content.size}"
            raise RegistryError(f"blob {content.digest}", 200, "", host=place.endpoint.host, message=message)
        return "present"
    return await _Upload(session, place, content, sent or _ignore).run(mount_from)


def _ignore(sent: int) -> None:
    pass


class _Upload:
    def __init__(self, session: Session, place: Place, content: Content, sent: Sent) -> None:
        self._session, self._exchange = session, session.exchange
        self._place, self._content, self._sent = place, content, sent
        self._what = f"blob {content.digest} to {place.name}"
        self._scopes: tuple[str, ...] = place.scopes(_ACTIONS)
        self._location: str | None = None

    async def run(self, mount_from: Sequence[str]) -> How:
        if not self._place.endpoint.no_mounts:
            for other in mount_from:
                if other != self._place.path and await self._mount(other):
                    return "mounted"
        budget = self._exchange.budget()
        in_chunks, failures = False, 0
        while True:
            try:
                await self._attempt(in_chunks)
                return "uploaded"
            except FailedAttemptError as failure:
                failures += 1
                in_chunks = in_chunks or (failures >= 2 and self._content.size > _LARGE)
                await self._retry(budget, failure)
            except RegistryError as error:
                if error.status != 413 or in_chunks:
                    raise
                in_chunks = True
            finally:
                await self._abandon()

    async def _retry(self, budget: Budget, failure: FailedAttemptError) -> None:
        await self._exchange.pause(budget, failure, self._what, self._place.endpoint.host)

    async def _attempt(self, in_chunks: bool) -> None:
        if self._location is None:
            self._location = await self._start()
        if in_chunks:
            await self._send_chunks()
        else:
            await self._put(0, self._content.size)
        self._location = None

    def _request(
        self, method: str, target: str, headers: dict[str, str], body: tuple[int, int] | None = None
    ) -> Request:
        """A request; *body* is the part of the blob that it carries."""
        start, end = body or (0, 0)
        return Request(
            self._what,
            self._place.endpoint,
            method,
            target,
            self._place.path,
            self._scopes,
            {"Content-Length": str(end - start), **headers},
            (lambda: self._body(start, end)) if body else None,
            patience=_COMMIT_TIMEOUT if method == "PUT" else None,
            once=True,
        )

    async def _body(self, start: int, end: int) -> AsyncIterator[bytes]:
        gone = start
        async for piece in self._content.read(start, end):
            yield piece
            gone += len(piece)
            self._sent(gone)

    # -- sessions ------------------------------------------------------------------------------

    async def _mount(self, other: str) -> bool:
        self._scopes = (*self._place.scopes(_ACTIONS), f"repository:{other}:pull")
        query = [("mount", self._content.digest), ("from", other)]
        target = add_query(repository_path(self._place.path, "blobs/uploads/"), query)
        request = self._request("POST", target, {})
        request.once = False
        try:
            reply = await self._exchange.fetch(request, MANIFEST_LIMIT, fine=frozenset({201, 202}))
        except RegistryError:
            self._place.endpoint.no_mounts = True
            return False
        except ComposefsError:  # no right to read the other repository, say
            return False
        finally:
            self._scopes = self._place.scopes(_ACTIONS)
        if reply.status == 201:
            return True
        self._location = self._next(request, reply)  # an ordinary session has begun
        return False

    async def _start(self) -> str:
        algorithm = self._content.digest.partition(":")[0]
        target = repository_path(self._place.path, "blobs/uploads/")
        if algorithm != "sha256":
            target = add_query(target, [("digest-algorithm", algorithm)])
        request = self._request("POST", target, {})
        request.once = False
        reply = await self._exchange.fetch(request, MANIFEST_LIMIT, fine=frozenset({202, 201, 200}))
        return self._next(request, reply)

    def _next(self, request: Request, reply: Reply) -> str:
        location = reply.get("location")
        if location is None:
            message = "it does not say where to send the blob"
            raise RegistryError(self._what, reply.status, "", host=reply.response.host, message=message)
        return self._exchange.check_location(request, reply.response, location)

    async def _put(self, start: int, end: int) -> None:
        assert self._location is not None
        target = add_query(self._location, [("digest", self._content.digest)])
        request = self._request("PUT", target, {"Content-Type": "application/octet-stream"}, (start, end))
        async with self._exchange.open(request) as response:
            if response.status not in (200, 201, 204):
                raise await self._exchange.refusal(request, response)
            self._exchange.succeeded(request, response)
            stored = response.get("docker-content-digest")
            if stored and stored != self._content.digest:
                _check_stored(self._what, self._content.digest, stored, response.host)

    async def _send_chunks(self) -> None:
        size, offset, stalls = _CHUNK, 0, 0
        while offset < self._content.size:
            end = min(offset + size, self._content.size)
            headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{offset}-{end - 1}"}
            assert self._location is not None
            request = self._request("PATCH", self._location, headers, (offset, end))
            async with self._exchange.open(request) as response:
                if response.status in (413, 416) and offset == 0 and size > _SMALL_CHUNK:
                    size = _SMALL_CHUNK
                    continue
                if response.status == 416:
                    received = await self._received()
                elif response.status in (201, 202, 204):
                    self._location = self._exchange.check_location(
                        request, response, response.get("location") or self._location
                    )
                    received = _end_of(response.get("range"), end)
                    least = response.get("oci-chunk-min-length") or ""
                    if least.isdigit() and len(least) < 12:
                        size = max(size, int(least))
                else:
                    raise await self._exchange.refusal(request, response)
            stalls = stalls + 1 if received <= offset else 0
            if stalls > 1:  # a registry that counts wrongly
                received = end
            offset = received
        await self._put(offset, offset)

    async def _received(self) -> int:
        """Where a session goes on."""
        assert self._location is not None
        request = self._request("GET", self._location, {})
        reply = await self._exchange.fetch(request, MANIFEST_LIMIT, fine=frozenset({204, 202, 200}))
        if location := reply.get("location"):
            self._location = self._exchange.check_location(request, reply.response, location)
        return _end_of(reply.get("range"), 0)

    async def _abandon(self) -> None:
        """End a session that will not be finished, if the registry likes to hear it."""
        location, self._location = self._location, None
        if location is None:
            return
        with CancelScope(shield=True), move_on_after(5):
            try:
                async with self._exchange.open(self._request("DELETE", location, {})) as response:
                    await response.read(MANIFEST_LIMIT)
            except (ComposefsError, FailedAttemptError):
                pass


def _end_of(text: str | None, otherwise: int) -> int:
    """The byte behind those that a registry says it has."""
    found = _RECEIVED.fullmatch(text.strip()) if text else None
    if found is None:
        return otherwise
    return int(found[1]) + 1 if int(found[1]) else 0


def _check_stored(what: str, digest: str, stored: str, host: str) -> None:
    if stored.partition(":")[0] == digest.partition(":")[0]:
        raise DigestMismatchError(what, digest, stored, host, "the registry stored something else")
    raise RegistryError(what, 201, "", host=host, message=f"it stores this blob only as {stored[:100]}")


# -- manifests ---------------------------------------------------------------------------------


def _entry_of(document: FetchedDocument) -> dict[str, object]:
    """What an index says of a referrer."""
    manifest = parse_manifest(document.raw, document.digest)
    return {
        "mediaType": document.media_type,
        "digest": document.digest,
        "size": len(document.raw),
        "artifactType": manifest.artifact_type or manifest.config.media_type,
        **({"annotations": dict(manifest.annotations)} if manifest.annotations else {}),
    }


async def push_manifest(session: Session, place: Place, reference: Reference, document: FetchedDocument) -> None:
    """Put a manifest or index, whose blobs are there, under the tag or digest of *reference*; the bytes as they are.

    Raises:
        DigestMismatchError: the registry says that it has stored something else.
        AuthenticationError, RegistryError, TransportError
    """
    what = f"manifest {reference}"
    which = reference.digest if reference.tag is None else reference.tag
    reply = await session.exchange.fetch(
        Request(
            what,
            place.endpoint,
            "PUT",
            repository_path(place.path, f"manifests/{which}"),
            place.path,
            place.scopes(_ACTIONS),
            {"Content-Type": document.media_type, "Content-Length": str(len(document.raw))},
            lambda: _once(document.raw),
        ),
        MANIFEST_LIMIT,
        fine=frozenset({200, 201, 202, 204}),
    )
    stored = reply.get("docker-content-digest")
    if stored is not None and stored.partition(":")[0] == document.digest.partition(":")[0]:
        if stored != document.digest:
            raise DigestMismatchError(what, document.digest, stored, reply.response.host, "it stored something else")
    elif reply.status == 200 or (stored is None and reply.get("location") is None):
        session.report(Message(f"{place.endpoint.host} does not confirm {reference}; it may not be a registry"))
    if not document.is_index:
        subject = parse_manifest(document.raw, document.digest).subject
        if subject is not None and reply.get("oci-subject") is None:
            await _add_referrer(session, place, reference.with_digest(subject.digest), document)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _add_referrer(session: Session, place: Place, subject: Reference, document: FetchedDocument) -> None:
    """Note a referrer in the index at the tag that stands in for the API, which the registry lacks."""
    for attempt in range(3):
        tag, raw, etag = await referrers_fallback(session, place, subject)
        index: dict[str, Any] = (
            json.loads(raw) if raw else {"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": []}
        )
        if any(entry.get("digest") == document.digest for entry in index["manifests"]):
            return
        index["manifests"].append(_entry_of(document))
        content = json.dumps(index, separators=(",", ":")).encode()
        headers = {"Content-Type": OCI_INDEX_TYPE, "Content-Length": str(len(content))}
        if etag is not None:
            headers["If-Match"] = etag
        request = Request(
            f"referrers of {subject}",
            place.endpoint,
            "PUT",
            repository_path(place.path, f"manifests/{tag}"),
            place.path,
            place.scopes(_ACTIONS),
            headers,
            lambda content=content: _once(content),  # type: ignore[misc]
        )
        try:
            await session.exchange.fetch(request, MANIFEST_LIMIT, fine=frozenset({200, 201, 202, 204}))
        except RegistryError as error:
            if error.status == 412 and attempt < 2:
                continue
            raise
        return
