"""What is in ``objects/`` compared with what is needed; deletes nothing.

Owns telling apart what is garbage, what a lease keeps, what is a leftover of an interrupted operation, and what is none
of ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..._repo.state import RepoState
from ..._repo.threads import Threads
from ..._sys import files
from ..._sys.beneath import IN_THE_WAY, opened_trusted
from ...digest import ObjectId
from ...findings import Finding
from .. import state_dir
from . import shards
from .idset import IdSet
from .shards import Listing

__all__ = ["Survey", "leftovers"]

_SHARD_NAME = re.compile(r"[0-9a-f]{2}")


@dataclass(slots=True)
class Survey:
    """What was found in ``objects/``."""

    garbage: list[bytes] = field(default_factory=list[bytes])
    """For each directory the ids of objects that nothing needs, one after the other."""
    sizes: list[array[int]] = field(default_factory=list["array[int]"])
    """Of those, in bytes."""
    young: int = 0
    """Objects that would be garbage, were they not younger than a lease."""
    missing: int = 0
    """Objects that are needed and not there."""
    leftovers: list[str] = field(default_factory=list[str])
    """Temporary files, by their path in the repository."""
    notes: list[Finding] = field(default_factory=list[Finding])
    """What is no object."""

    @classmethod
    def make(cls, state: RepoState, live: IdSet, since: int | None, check: Callable[[], object]) -> Survey:
        """List all objects, and look at each that is not in *live*.  Blocks for about a microsecond an object.

        Args:
            since: what was stored at this time (in nanoseconds) or later is kept by a lease.
        """
        survey = cls()
        survey._look_at_top(state)
        since = shards.NEVER if since is None else since
        with Threads(shards.WORKERS) as pool:
            needed = [live.shard(shard) for shard in range(shards.SHARDS)]
            for shard, listing in enumerate(pool.map(partial(_compare, state, since), range(shards.SHARDS), needed)):
                check()
                survey._take(state, shard, len(needed[shard]), listing)
        return survey

    @property
    def count(self) -> int:
        """How many objects are garbage."""
        return sum(map(len, self.sizes))

    @property
    def size(self) -> int:
        """How many bytes the objects that are garbage have."""
        return sum(map(sum, self.sizes))

    def is_garbage(self, object_id: ObjectId) -> bool:
        ids, at = self.garbage[object_id[0]], -1
        while (at := ids.find(object_id, at + 1)) % len(object_id):
            if at < 0:
                return False
        return True

    def _look_at_top(self, state: RepoState) -> None:
        for name in sorted(_listing(state, "objects")):
            path = f"objects/{name}"
            if name.startswith(files.TMPFILE_PREFIX):
                self.leftovers.append(path)
            elif not _SHARD_NAME.fullmatch(name):
                self.notes.append(Finding("stray-entry", path, detail="not a directory of objects"))

    def _take(self, state: RepoState, shard: int, needed: int, listing: Listing | None) -> None:
        if listing is None:
            path = f"objects/{shard:02x}"
            self.notes.append(Finding("unexpected-file-type", path, detail="it is no directory"))
            listing = Listing(0, b"", array("Q"), b"", [])
        width = state.algorithm.digest_size
        self.missing += needed // width - listing.matched
        self.garbage.append(listing.dead)
        self.sizes.append(listing.sizes)
        self.young += len(listing.young) // width
        for name, mode in sorted(listing.others):
            self._take_other(f"objects/{shard:02x}/{os.fsdecode(name)}", mode)

    def _take_other(self, path: str, mode: int) -> None:
        if os.path.basename(path).startswith(files.TMPFILE_PREFIX) and stat.S_ISREG(mode):
            self.leftovers.append(path)
        else:
            self.notes.append(Finding("object-invalid-name", path, detail="not an object"))


def _compare(state: RepoState, since: int, shard: int, needed: bytes) -> Listing | None:
    """None if what stands there is no directory."""
    try:
        with files.naming(state.path):
            return shards.compare(state.objects_fd, shard, needed, state.algorithm.digest_size, since)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        return None


def leftovers(state: RepoState) -> list[str]:
    """Temporary files and links outside of ``objects/`` that are there now; writers of now may have made them."""
    found: list[str] = []
    for directory in (".", state_dir.DIRECTORY, f"{state_dir.DIRECTORY}/leases"):
        prefix = "" if directory == "." else f"{directory}/"
        for name in sorted(_listing(state, directory)):
            is_link = name.startswith(files.SYMLINK_PREFIX)
            if not (is_link or name.startswith(files.TMPFILE_PREFIX)):
                continue
            with files.naming(state.path), contextlib.suppress(FileNotFoundError):  # it has got its name meanwhile
                mode = os.stat(prefix + name, dir_fd=state.fd, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode) if is_link else stat.S_ISREG(mode):
                    found.append(prefix + name)
    return found


def _listing(state: RepoState, directory: str) -> list[str]:
    try:
        with files.naming(state.path), opened_trusted(directory, dir_fd=state.fd) as fd:
            return os.listdir(fd)
    except OSError as error:
        if error.errno not in (*IN_THE_WAY, errno.ENOENT):
            raise
        return []
