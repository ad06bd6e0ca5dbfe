"""Every exception that the package raises on purpose.

::

    ComposefsError
    ├── RepositoryError                  the repository as a whole
    │   ├── RepositoryNotFoundError
    │   ├── MetadataError                meta.json cannot be understood, or contradicts a request
    │   ├── UnsupportedFeatureError
    │   ├── AlgorithmMismatchError
    │   ├── ReadOnlyRepositoryError
    │   ├── RepositoryInUseError
    │   ├── RepositoryClosedError (ValueError)
    │   └── WrongProcessError (RuntimeError)
    ├── IntegrityError                   content is not what its name says
    │   ├── DigestMismatchError
    │   ├── ImagePolicyError             policy.json does not allow the image
    │   ├── VerityMissingError
    │   ├── VerityNotSupportedError
    │   └── ReachUnknownError
    ├── NotFoundError (LookupError)
    │   ├── ObjectNotFoundError
    │   ├── StreamNotFoundError
    │   └── ImageNotFoundError
    ├── FormatError (ValueError)         bytes that do not follow their format
    │   ├── SplitstreamError             at a byte offset
    │   ├── ErofsError                   at a byte offset
    │   ├── DumpfileError                at a line
    │   ├── TarError                     at a byte offset
    │   ├── CompressionError             at a byte offset of the packed input
    │   ├── SELinuxPolicyError           at a line
    │   ├── BootError                    a kernel, boot entry or kernel argument
    │   ├── OciError
    │   └── StoreFormatError             a document, table or pack of a store
    ├── InvalidNameError (ValueError)    a name that would leave its directory
    ├── TransportError                   content could not be fetched
    │   ├── RegistryError
    │   ├── AuthenticationError
    │   ├── ProxyError
    │   └── StoreError                   a store of packs
    │       ├── BlobMissingError
    │       ├── ConditionalWritesError
    │       ├── FetchError               FetchDamagedError is an IntegrityError, too
    │       ├── RefConflictError
    │       ├── StoreBusyError
    │       └── UnknownOutcomeError
    ├── PolicyError                      the base of ImagePolicyError and SELinuxPolicyError
    └── MountError (OSError)

The arguments are kept as attributes; the class writes the message.  An `OSError` of the kernel passes
through unchanged, with its ``filename`` set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Self

__all__ = [
    "AlgorithmMismatchError",
    "AuthenticationError",
    "BlobMissingError",
    "BootError",
    "ComposefsError",
    "CompressionError",
    "ConditionalWritesError",
    "DigestMismatchError",
    "DumpfileError",
    "ErofsError",
    "FetchDamagedError",
    "FetchError",
    "FormatError",
    "ImageNotFoundError",
    "ImagePolicyError",
    "IntegrityError",
    "InvalidNameError",
    "MetadataError",
    "MountError",
    "NotFoundError",
    "ObjectNotFoundError",
    "OciError",
    "PolicyError",
    "ProxyError",
    "ReachUnknownError",
    "ReadOnlyRepositoryError",
    "RefConflictError",
    "RegistryError",
    "RepositoryClosedError",
    "RepositoryError",
    "RepositoryInUseError",
    "RepositoryNotFoundError",
    "SELinuxPolicyError",
    "SplitstreamError",
    "StoreBusyError",
    "StoreError",
    "StoreFormatError",
    "StreamNotFoundError",
    "TarError",
    "TransportError",
    "UnknownOutcomeError",
    "UnsupportedFeatureError",
    "VerityMissingError",
    "VerityNotSupportedError",
    "WrongProcessError",
]


class ComposefsError(Exception):
    """The base of all of them; they can be pickled and copied, with all their attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        made = OSError.__reduce__(self) if isinstance(self, OSError) else (type(self), self.args)
        return _remake, (type(self), made[1], self.__dict__.copy())


def _remake(kind: type[ComposefsError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ComposefsError:
    """An error again, without its constructor: what that would make of its arguments is in *args* already."""
    error = kind.__new__(kind, *args)
    if isinstance(error, OSError):
        OSError.__init__(error, *args)
    else:
        error.args = args
    error.__dict__.update(attributes)
    return error


class PolicyError(ComposefsError):
    """A policy forbids something, or cannot be used: `ImagePolicyError` or `SELinuxPolicyError`."""


# -- the repository as a whole -----------------------------------------------------------------


class RepositoryError(ComposefsError):
    """The repository as a whole cannot be used as asked."""


class RepositoryNotFoundError(RepositoryError):
    """There is no repository at *path*."""

    def __init__(self, path: str, reason: str = "there is no meta.json") -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is not a composefs repository: {reason}")


class MetadataError(RepositoryError):
    """meta.json of *path* cannot be understood, or contradicts what was asked for."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class UnsupportedFeatureError(RepositoryError):
    """The repository uses incompatible *features* that this version does not know."""

    def __init__(self, path: str, features: tuple[str, ...]) -> None:
        self.path = path
        self.features = features
        super().__init__(f"{path} needs features that this version does not know: {', '.join(features)}")


class AlgorithmMismatchError(RepositoryError):
    """Something uses another digest algorithm than the repository."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(f"{what} uses {found}, expected {expected}")


class ReadOnlyRepositoryError(RepositoryError):
    """The repository at *path* must not or cannot be written."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is read-only: {reason}")


class RepositoryInUseError(RepositoryError):
    """Another handle holds a lock that excludes the operation.

    Args:
        holders: other processes that hold it, as far as the kernel shows them, each as ``NAME (PID)``.
    """

    def __init__(self, path: str, operation: str, holders: tuple[str, ...] = ()) -> None:
        self.path = path
        self.operation = operation
        self.holders = holders
        used = f"in use by {', '.join(holders)}" if holders else "in use"
        super().__init__(f"{path} is {used}: {operation} needs it alone; try again when the others have finished")


class RepositoryClosedError(RepositoryError, ValueError):
    """The handle of the repository at *path* has been closed, perhaps while the operation was under way."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"the repository {path} is closed")


class WrongProcessError(RepositoryError, RuntimeError):
    """The repository at *path* was opened by process *pid*, and is used in another one."""

    def __init__(self, path: str, pid: int) -> None:
        self.path = path
        self.pid = pid
        super().__init__(
            f"the repository {path} was opened by process {pid} and is of no use in another, such as one that was "
            "forked: open it there again"
        )


# -- content that is not what its name says ----------------------------------------------------


class IntegrityError(ComposefsError):
    """Content is not what its name says, or nothing guards that it stays so."""


class DigestMismatchError(IntegrityError):
    """*what* has another digest than the one it is known by; *host* has sent it, if it came from a network."""

    def __init__(self, what: str, expected: str, found: str, host: str = "", note: str = "") -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.host = host
        self.note = note
        sent = f" from {host}" if host else ""
        super().__init__(f"{what}{sent}: expected digest {expected}, found {found}{f' ({note})' if note else ''}")


class ImagePolicyError(PolicyError, IntegrityError):
    """The policy in *file* (containers-policy.json(5)) does not allow *reference*, for what *requirement* says."""

    def __init__(self, reference: str, requirement: str, file: str) -> None:
        self.reference = reference
        self.requirement = requirement
        self.file = file
        super().__init__(f"{reference}: the policy {file} does not allow it: {requirement}")


class VerityMissingError(IntegrityError):
    """*what* has no fs-verity protection although the repository requires it."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} is not protected by fs-verity, which this repository requires")


class VerityNotSupportedError(IntegrityError):
    """The file system of *what* cannot do fs-verity and the repository is not insecure."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"the file system of {what} does not support fs-verity; use another one, or an insecure repository"
        )


class ReachUnknownError(IntegrityError):
    """What names keep cannot be told: *what*, which they lead to or should be in, cannot be understood."""

    def __init__(self, what: str, reason: str, remedy: str = "") -> None:
        self.what = what
        self.reason = reason
        self.remedy = remedy
        names = "names may be in" if remedy else "names lead to"
        remedy = remedy or "repair it with fsck --repair, or remove the names that lead to it"
        super().__init__(f"nothing is deleted, as {names} {what}, which cannot be understood: {reason}; {remedy}")


# -- things that are not there -----------------------------------------------------------------


class NotFoundError(ComposefsError, LookupError):
    """Something that was asked for by name is not there: in the repository, or where an image should come from."""

    kind = "thing"

    def __init__(self, name: str, kind: str = "", reason: str = "") -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{kind or self.kind} not found: {name}{f': {reason}' if reason else ''}")


class ObjectNotFoundError(NotFoundError):
    """No object has that id."""

    kind = "object"


class StreamNotFoundError(NotFoundError):
    """No stream, reference or tag has that name."""

    kind = "stream"


class ImageNotFoundError(NotFoundError):
    """No image has that name, or none of that name is for the platform."""

    kind = "image"


# -- bytes that do not follow their format -----------------------------------------------------


class FormatError(ComposefsError, ValueError):
    """Bytes do not follow their format."""


class _OffsetError(FormatError):
    kind = "input"

    def __init__(self, reason: str, offset: int | None, name: str = "") -> None:
        self.reason = reason
        self.offset = offset
        self.name = name
        where = f"{name}: " if name else ""
        place = "" if offset is None else f" ({self.kind} offset {offset})"
        super().__init__(f"{where}{reason}{place}")

    def inside(self, name: str) -> Self:
        """Return this error as one of the input *name*, unless it names an input already."""
        return self if self.name else type(self)(self.reason, self.offset, name)


class SplitstreamError(_OffsetError):
    """A splitstream file is damaged at byte *offset* of the file, or of the unpacked section *reason* names."""

    kind = "splitstream"


class ErofsError(_OffsetError):
    """An image is damaged at byte *offset*; or, without one, there can be no image of the file *name* in a tree."""

    kind = "image"


class TarError(_OffsetError):
    """A tar archive cannot be read at byte *offset* of the uncompressed archive."""

    kind = "tar"


class CompressionError(_OffsetError):
    """Packed input is damaged or unpacks to too much, at byte *offset* of the packed input."""

    kind = "packed"


@contextlib.contextmanager
def inputs_named(name: str) -> Iterator[None]:
    """Let errors at a place say that they are about *name*: parsers see bytes alone."""
    try:
        yield
    except (_OffsetError, DumpfileError) as error:
        raise error.inside(name) from error.__cause__


class DumpfileError(FormatError):
    """A line of a dump file is malformed; *line* counts from 1."""

    def __init__(self, reason: str, line: int, name: str = "") -> None:
        self.reason = reason
        self.line = line
        self.name = name
        super().__init__(f"{f'{name}: ' if name else ''}line {line}: {reason}")

    def inside(self, name: str) -> Self:
        """Return this error as one of the file *name*."""
        return type(self)(self.reason, self.line, name)


class OciError(FormatError):
    """*what* (an index, manifest, config, layer, image directory or reference) is not valid OCI."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what}: {reason}")


class SELinuxPolicyError(PolicyError, FormatError):
    """The SELinux policy file *name* cannot be used; *line* counts from 1, and is None where no line is to blame."""

    def __init__(self, name: str, reason: str, line: int | None = None) -> None:
        self.name = name
        self.reason = reason
        self.line = line
        super().__init__(f"{name}{'' if line is None else f', line {line}'}: {reason}")


class BootError(FormatError):
    """*what*, a tree, kernel, boot entry or kernel argument, cannot be booted from, or not as asked."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what}: {reason}")


class StoreFormatError(FormatError):
    """*what* in a store (a reference, manifest, table, pack or list) does not follow its format."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what}: {reason}")


class InvalidNameError(ComposefsError, ValueError):
    """A stream, image or reference name is empty, too long, or would leave its directory."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"invalid name {name!r}: {reason}")


# -- transports --------------------------------------------------------------------------------


class TransportError(ComposefsError):
    """Content could not be fetched from where it should come."""


class RegistryError(TransportError):
    """A registry answered with an error, or with what cannot be used.

    Args:
        status: of HTTP; 0 if there was no answer.
        code: of the distribution specification, such as ``MANIFEST_UNKNOWN``; may be empty.
        message: what it said, or what is wrong; printable.
    """

    def __init__(self, what: str, status: int, code: str, *, host: str = "", message: str = "") -> None:
        self.what = what
        self.status = status
        self.code = code
        self.host = host
        self.message = message
        who = f"the registry {host}" if host else "the registry"
        answered = " ".join(filter(None, (f"{who} answered {status}" if status else host, code)))
        super().__init__(": ".join(filter(None, (what, answered, message))))


class AuthenticationError(TransportError):
    """Credentials for *host* are missing or were refused.

    Args:
        scope: what was to be done, as registries spell it; may be empty.
        looked_in: where credentials were looked for and not found.
        reason: what the registry said, and whose credentials it was shown.
    """

    def __init__(self, host: str = "", scope: str = "", looked_in: tuple[str, ...] = (), reason: str = "") -> None:
        self.host = host
        self.scope = scope
        self.looked_in = looked_in
        self.reason = reason
        wanted = f" for {scope}" if scope else ""
        where = f"no credentials were found in: {', '.join(looked_in)}" if looked_in else ""
        text = "; ".join(filter(None, (reason or "it wants credentials", where)))
        super().__init__(f"access to {host or 'the registry'} is refused{wanted}: {text}")


class ProxyError(TransportError):
    """A helper process that should deliver content failed."""


class StoreError(TransportError):
    """The store at *store* could not be read or written as asked."""

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        self.reason = reason
        super().__init__(f"{store}: {reason}")


class BlobMissingError(StoreError):
    """The store has no object with the key *key*."""

    def __init__(self, store: str, key: str) -> None:
        self.key = key
        super().__init__(store, f"{key} is not there")


class UnknownOutcomeError(StoreError):
    """A conditional write of *key* failed so that nobody can tell whether it has taken place."""

    def __init__(self, store: str, key: str, reason: str) -> None:
        self.key = key
        super().__init__(store, f"writing {key}: {reason}")


class ConditionalWritesError(StoreError):
    """The store accepts writes whose condition is not met, so that two writers would overwrite each other."""


class StoreBusyError(StoreError):
    """Another garbage collection, *owner*, works on the store; its last sign of life is from *since*."""

    def __init__(self, store: str, owner: str, since: str) -> None:
        self.owner = owner
        self.since = since
        super().__init__(store, f"garbage collection {owner} is at work, last heard of at {since}; try again later")


class RefConflictError(StoreError):
    """Another writer has changed the reference *name*: it was *expected* and now is *found* (digests, or "absent")."""

    def __init__(self, store: str, name: str, expected: str, found: str) -> None:
        self.name = name
        self.expected = expected
        self.found = found
        super().__init__(store, f"the name {name} was {expected} and now is {found}; publish again to replace it")


class FetchError(StoreError):
    """No source has everything that is needed.

    The ids of the objects that could not be had are *missing* (empty if not even the plan could be read), and
    *by_source* says what was wrong with each source.
    """

    def __init__(self, name: str, missing: tuple[str, ...], by_source: dict[str, str]) -> None:
        self.name = name
        self.missing = missing
        self.by_source = by_source
        first = f"object {missing[0]}" if missing else "its description"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        said = "; ".join(f"{source}: {reason}" for source, reason in by_source.items()) or "there is no source"
        super().__init__(name, f"cannot fetch {first}{more}: {said}")


class FetchDamagedError(FetchError, IntegrityError):
    """Like `FetchError`, and at least one source has delivered content that is not what its digest says."""


class MountError(ComposefsError, OSError):
    """The kernel refused to mount, or to unmount; *log* has what it said about it."""

    def __init__(self, errno: int, what: str, log: str = "", doing: str = "mounting") -> None:
        OSError.__init__(self, errno, os.strerror(errno), what)
        self.what = what
        self.log = log
        self.doing = doing

    def __str__(self) -> str:
        said = f" ({self.log})" if self.log else ""
        return f"{self.doing} {self.what}: {self.strerror}{said}"
