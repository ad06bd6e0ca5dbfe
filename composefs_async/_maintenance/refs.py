"""References, the names below ``refs/`` that keep what they lead to: listing, adding, renaming, pruning.

Owns what is done to references of both categories alike.  Does not own how a name is published or removed
(`_repo.names`), nor tags, which are references with an encoded name (`oci.names`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from .._repo import images, objects, publish, streams
from .._repo.publish import Category, Link
from .._repo.state import RepoState
from .._sys import files
from .._sys.beneath import opened_beneath
from ..errors import ImageNotFoundError, InvalidNameError, StreamNotFoundError
from ..results import NamedReference
from . import reachability

__all__ = ["add_reference", "list_references", "prune_references", "rename_reference"]

_REFERRERS = "oci-referrers"
_NOT_FOUND = {"streams": StreamNotFoundError, "images": ImageNotFoundError}


def list_references(state: RepoState) -> list[NamedReference]:
    """All references, images' first, each category sorted by name.  Blocks; what is no link is passed over."""
    found = []
    for each in reachability.roots(state).references:
        there = each.object_id is not None and objects.stands(state, each.object_id)
        name = each.path.removeprefix(f"{each.category}/refs/")
        found.append(NamedReference(each.category, name, each.name, not there))
    return found


def add_reference(state: RepoState, category: Category, reference: str, name: str, *, replace: bool = False) -> None:
    """Let *reference* lead to the stream or image *name*, durably.

    Raises:
        StreamNotFoundError, ImageNotFoundError: it would dangle, and stop composefs-rs's gc.
        FileExistsError: there is such a reference already, and *replace* is not set.
        InvalidNameError
    """
    with state.shared():
        if category == "images":
            found = images.has_image(state, name)
            name = found.hex() if found is not None else name
        else:
            publish.check_name(name)
            found = streams.has_stream(state, name)
        if found is None:
            raise _NOT_FOUND[category](name)
        publish.publish(state, [Link.reference(category, reference, name)], replace=replace)


def rename_reference(state: RepoState, category: Category, reference: str, new: str, *, replace: bool = False) -> None:
    """Give *reference* the name *new*, durably; a dangling one of January 2026 is set right by that.

    What it leads to is kept all the time: a crash leaves the old name, both, or the new one.  If both are there and
    mean the same, the rest is done.

    Raises:
        StreamNotFoundError, ImageNotFoundError: there is no such reference.
        FileExistsError: *new* exists, means something else, and *replace* is not set; nothing has changed.
        InvalidNameError
    """
    with state.shared():
        target = publish.target_of(state, f"{category}/refs/{publish.check_reference(reference)}")
        if target is None:
            raise _NOT_FOUND[category](f"refs/{reference}")
        link = Link.reference(category, new, publish.entry_of(state, category, target))
        if new == reference:
            return
        # An equal one may come from a rename that was interrupted.
        publish.publish(state, [link], replace=replace or publish.target_of(state, link.path) == link.target)
        publish.remove_reference(state, category, reference)


def prune_references(state: RepoState, *, dangling: bool = False, dry_run: bool = False) -> list[NamedReference]:
    """Remove what OCI referrers are recorded of a manifest that is gone, or that are gone themselves.  Durable.

    They keep what they lead to, though nobody asks for it any more.  A crash leaves some of them.

    Args:
        dangling: remove every other reference that leads nowhere, too.
        dry_run: only tell which.

    Returns:
        What was removed.
    """
    with state.shared():
        found = [each for each in list_references(state) if _is_stale(state, each) or (dangling and each.dangling)]
        if not dry_run:
            for each in found:
                publish.remove_reference(state, each.category, each.name)
            _remove_empty_subjects(state, {subject for each in found if (subject := _subject(each))})
        return found


def _is_stale(state: RepoState, reference: NamedReference) -> bool:
    subject = _subject(reference)
    return subject is not None and (reference.dangling or not _has_manifest(state, subject))


def _has_manifest(state: RepoState, digest: str) -> bool:
    with contextlib.suppress(InvalidNameError):  # too long to be one
        return streams.has_stream(state, f"oci-manifest-{digest}") is not None
    return False


def _subject(reference: NamedReference) -> str | None:
    """The digest of the manifest that a referrer is recorded of; None if it is no referrer."""
    parts = reference.name.split("/")
    return parts[1] if reference.category == "streams" and parts[0] == _REFERRERS and len(parts) == 3 else None


def _remove_empty_subjects(state: RepoState, pruned: Collection[str]) -> None:
    """Directories of subjects that had referrers, and of those that are gone, as an interruption leaves them."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    with contextlib.suppress(OSError), opened_beneath(f"streams/refs/{_REFERRERS}", flags, dir_fd=state.fd) as fd:
        for subject in os.listdir(fd):
            if subject in pruned or not _has_manifest(state, subject):
                with contextlib.suppress(OSError):  # it is not empty, or somebody else was faster
                    os.rmdir(subject, dir_fd=fd)
        files.fsync_directory(".", dir_fd=fd)
