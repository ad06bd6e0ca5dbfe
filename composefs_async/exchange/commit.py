"""Give a published artifact its name, so that no garbage collection beside it can take away what it needs.

Owns the commit window and the outcome of conditional writes.  Does not own making or uploading packs (`publisher`), nor
the other side (`gc`), whose module says why both together are safe.  No I/O of its own: see `protocol`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import RefConflictError, StoreError, StoreFormatError, UnknownOutcomeError
from .backends.base import PreconditionError, Stored
from .condemned import CONDEMNED_KEY, CONDEMNED_LIMIT, Condemned
from .documents import REF_LIMIT, Manifest, Ref, blob_key, encode_deleted_ref, encode_ref, parse_ref, ref_key
from .protocol import Head, Many, Program, Put, Read, Swap, Work

__all__ = ["ANYTHING", "Draft", "Expected", "commit", "publish_ref", "read_condemned", "read_ref", "remove_ref"]

_SWAP_ATTEMPTS = 8
_WINDOW_ATTEMPTS = 64

ANYTHING = "anything"
"""What a reference may be when it is to be replaced in any case."""
Expected = str
"""The digest of the manifest that a reference is expected to mean, "" if it is expected to be absent, or `ANYTHING`."""


class Assembled(Protocol):
    """Documents of an artifact as they are to be uploaded."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def documents(self) -> dict[str, bytes]:
        """Table, config and manifest by their digests."""
        ...


class Draft(Protocol):
    """An artifact whose packs are in the store and that has no name yet."""

    def assemble(self) -> Assembled:
        """Make table, config and manifest of the packs as they are now."""
        ...

    def renew(self, digests: Collection[str]) -> None:
        """Upload the members of those packs again under other names, and give those documents other digests.

        Called in a worker thread.
        """
        ...


@dataclass(slots=True)
class Uploads:
    """When this process has put which blob; others are somebody else's."""

    clock: Callable[[], float]
    """Monotonic, in seconds."""
    put_at: dict[str, float] = field(default_factory=dict[str, float])

    def note(self, digest: str, begun: float) -> None:
        """Remember that *digest* was put, at some time after *begun*."""
        self.put_at[digest] = begun

    def is_fresh(self, digest: str, seconds: float) -> bool:
        """Whether this process has put *digest* in the last so many seconds."""
        return self.clock() - self.put_at.get(digest, float("-inf")) <= seconds


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which a name must change after the list of the condemned has been read."""

    begun: float
    seconds: float
    clock: Callable[[], float]

    @property
    def is_over(self) -> bool:
        return self.clock() - self.begun > self.seconds


def read_ref(name: str, url: str) -> Program[tuple[Ref | None, str | None]]:
    """The reference *name* and its version; None for one that is absent or has been removed."""
    stored: Stored | None = yield Read(ref_key(name), REF_LIMIT)
    if stored is None:
        return None, None
    try:
        ref = parse_ref(stored.data, name)
    except StoreFormatError as error:
        raise StoreFormatError(f"{url}: {error.what}", error.reason) from None
    return ref, stored.version


def read_condemned(url: str) -> Program[Condemned]:
    """The list of what is condemned."""
    stored: Stored | None = yield Read(CONDEMNED_KEY, CONDEMNED_LIMIT)
    return Condemned.parse(stored.data if stored else None, url)


def commit(
    draft: Draft, name: str, expected: Expected, *, url: str, grace: float, uploads: Uploads, created: str = ""
) -> Program[Manifest]:
    """Upload the documents of *draft* and let *name* mean it.

    No blob of the artifact is on the list of the condemned, and all are there, at some moment not more than a third of
    the grace time before the name changes.  If the write itself took longer than that (a machine may sleep), all is
    looked at and written once more.

    Raises:
        RefConflictError: another writer has changed the name; nothing needs undoing.
    """
    for _ in range(_WINDOW_ATTEMPTS):
        assembled = draft.assemble()
        manifest = assembled.manifest
        yield from _put_documents(assembled, uploads, grace)
        begun = uploads.clock()
        condemned = yield from read_condemned(url)
        lost = {digest for digest in manifest.needed if digest in condemned}
        if not lost:
            lost = yield from _missing(manifest, uploads, grace)
        if lost:
            yield Work(lambda lost=lost: draft.renew(lost))  # type: ignore[misc]
            continue
        window = Window(begun, grace / 3, uploads.clock)
        if (yield from publish_ref(name, manifest, expected, url=url, window=window, created=created)):
            if not window.is_over:
                return manifest
            expected = manifest.digest if expected != ANYTHING else expected
    raise StoreError(url, f"{name} could not be written within a third of the grace time of {grace:g} seconds")


def _put_documents(assembled: Assembled, uploads: Uploads, grace: float) -> Program[None]:
    *first, last = [digest for digest in assembled.documents if not uploads.is_fresh(digest, grace / 3)] or [""]
    for digests in (first, [last]):  # the manifest stands last
        begun = uploads.clock()
        yield Many([Put(blob_key(digest), assembled.documents[digest]) for digest in digests if digest])
        for digest in digests:
            uploads.note(digest, begun)


def _missing(manifest: Manifest, uploads: Uploads, grace: float) -> Program[set[str]]:
    """Blobs that are not there, among those that this process has not put just now."""
    unsure = [digest for digest in manifest.needed if not uploads.is_fresh(digest, grace / 3)]
    found: list[object] = (yield Many([Head(blob_key(digest)) for digest in unsure])) if unsure else []
    return {digest for digest, info in zip(unsure, found, strict=True) if info is None}


def publish_ref(
    name: str,
    manifest: Manifest,
    expected: Expected,
    *,
    url: str,
    window: Window,
    created: str = "",
) -> Program[bool]:
    """Let *name* mean *manifest* by compare-and-swap; False if the time of the window is over.

    A write whose outcome is not known is told by its write id: a condition that failed may mean that it was ours.

    Raises:
        RefConflictError
    """
    write_id = str(uuid.uuid4())
    for _ in range(_SWAP_ATTEMPTS):
        found, version = yield from read_ref(name, url)
        if found is not None and found.write_id == write_id:
            return True
        digest = found.digest if found else ""
        if expected not in (ANYTHING, digest):
            raise RefConflictError(url, name, expected or "absent", digest or "absent")
        if window.is_over:
            return False
        data = encode_ref(name, manifest, previous=digest, created=created, write_id=write_id)
        outcome: object = yield Swap(ref_key(name), data, version)
        if not isinstance(outcome, PreconditionError | UnknownOutcomeError):
            return True
    found, _version = yield from read_ref(name, url)
    if found is not None and found.write_id == write_id:
        return True
    raise RefConflictError(url, name, expected or "absent", found.digest if found and found.digest else "absent")


def remove_ref(name: str, *, url: str) -> Program[bool]:
    """Remove *name* by compare-and-swap; False if it was not there."""
    write_id = str(uuid.uuid4())
    for _ in range(_SWAP_ATTEMPTS):
        found, version = yield from read_ref(name, url)
        if found is None or found.deleted:
            return found is not None and found.write_id == write_id
        outcome: object = yield Swap(ref_key(name), encode_deleted_ref(write_id), version)
        if not isinstance(outcome, PreconditionError | UnknownOutcomeError):
            return True
    raise RefConflictError(url, name, found.digest if found else "absent", "changing all the time")
