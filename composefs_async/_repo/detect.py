"""What the objects say about a repository whose meta.json is missing, or about to be written.

Owns counting their names and looking for fs-verity.  All objects are looked at: one alone may be a stray, or the
only one that is protected.  Takes a descriptor of the repository, since there is no `RepoState` yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator
from dataclasses import dataclass

from .._sys import beneath, verity
from ..digest import Algorithm, ObjectId
from ..errors import AlgorithmMismatchError, FormatError, MetadataError, VerityMissingError, VerityNotSupportedError

__all__ = ["ObjectNames", "count_objects", "first_unprotected", "has_names", "require_fitting"]


@dataclass(frozen=True, slots=True)
class ObjectNames:
    """How many objects are named by each algorithm, and one of each."""

    counts: dict[Algorithm, int]
    examples: dict[Algorithm, ObjectId]

    def algorithm(self, path: str) -> Algorithm | None:
        """The one that all names are of; None if there are no objects.

        Raises:
            MetadataError: there are both kinds, of which one would become invisible.
        """
        if len(self.counts) > 1:
            kinds = " and ".join(
                f"{count} by {kind.value} (such as objects/{self.examples[kind].path})"
                for kind, count in self.counts.items()
            )
            raise MetadataError(
                path, f"its objects are named by two algorithms, {kinds}; move those of one kind elsewhere"
            )
        return next(iter(self.counts), None)


def count_objects(fd: int) -> ObjectNames:
    """Blocks for a listing of all objects; what is not named like an object is passed over."""
    found = ObjectNames({}, {})
    for object_id in _objects(fd):
        kind = object_id.algorithm
        found.counts[kind] = found.counts.get(kind, 0) + 1
        found.examples.setdefault(kind, object_id)
    return found


def _objects(fd: int) -> Generator[ObjectId]:
    with contextlib.suppress(FileNotFoundError), beneath.opened_trusted("objects", dir_fd=fd) as objects:
        for shard in sorted(name for name in os.listdir(objects) if len(name) == 2):
            try:
                with beneath.opened_beneath(shard, os.O_RDONLY | os.O_DIRECTORY, dir_fd=objects) as directory:
                    names = os.listdir(directory)
            except OSError as error:
                if not beneath.is_in_the_way(error):
                    raise
                continue
            for name in names:
                with contextlib.suppress(FormatError):
                    yield ObjectId.from_path(f"{shard}/{name}")


def first_unprotected(fd: int, algorithm: Algorithm) -> ObjectId | None:
    """An object that fs-verity does not guard; None if there is none.  Opens every object, up to the first such."""
    with contextlib.closing(_objects(fd)) as found:  # at once, not when the traceback of an error goes
        return next((each for each in found if not _is_protected(fd, each, algorithm)), None)


def _is_protected(fd: int, object_id: ObjectId, algorithm: Algorithm) -> bool:
    path = f"objects/{object_id.path}"
    try:
        # Not to wait for the other end of a FIFO, nor to measure what is elsewhere.
        with (
            beneath.opened_trusted("objects", flags=os.O_PATH, dir_fd=fd) as objects,
            beneath.opened_beneath(object_id.path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=objects) as file,
        ):
            verity.measure(file, algorithm, path)
    except (VerityMissingError, VerityNotSupportedError, AlgorithmMismatchError):
        return False
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENXIO):
            raise
        return error.errno == errno.ENOENT  # it has been removed meanwhile
    return True


def has_names(fd: int) -> bool:
    """Whether there is anything below ``streams/`` or ``images/``."""
    for category in ("streams", "images"):
        with contextlib.suppress(FileNotFoundError), beneath.opened_trusted(category, dir_fd=fd) as directory:
            if os.listdir(directory):
                return True
    return False


def require_fitting(fd: int, path: str, algorithm: Algorithm, *, secure: bool) -> None:
    """Refuse a meta.json with which objects that are there could not be read any more.

    Raises:
        MetadataError: objects are named by another algorithm.
        VerityMissingError: *secure*, and an object is not protected.
    """
    found = count_objects(fd).algorithm(path)
    if found not in (None, algorithm):
        assert found is not None
        raise MetadataError(path, f"its objects are named by {found.value}; initialize it with {found.text}")
    if secure and (object_id := first_unprotected(fd, algorithm)) is not None:
        raise VerityMissingError(f"objects/{object_id.path}")
