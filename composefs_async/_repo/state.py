"""One open repository: its descriptors, what its meta.json says, and its lock."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from .._sys import files, locks
from .._sys.beneath import closing, open_beneath, open_trusted, opened_beneath
from ..digest import Algorithm, ObjectId
from ..errors import ReadOnlyRepositoryError, RepositoryInUseError
from .counting import StoreCounter
from .lifetime import Lifetime
from .metadata import Metadata
from .sync import SyncGroup

__all__ = ["OpenLease", "RepoState"]

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644


class OpenLease(Protocol):
    """Keeps layers that no image names; see `composefs_async._maintenance.leases`."""

    def finished(self, diff_id: str, stream_id: ObjectId, /) -> None: ...


class RepoState:
    """Owns its descriptors until `close`.  Safe for use from several threads."""

    in_one_place: bool = True
    """All objects are below `objects_fd`, so that the native code may open them there itself."""

    def __init__(self, path: str, fd: int, metadata: Metadata, *, secure: bool) -> None:
        self.path = path
        self.metadata = metadata
        self.secure = secure
        """Every object must be protected by fs-verity, and is measured when it is opened."""
        self.verity_works: bool | None = True if secure else None
        """Whether this file system does fs-verity; None until it has been tried."""
        self.stored: StoreCounter = StoreCounter()
        self.leases: list[OpenLease] = []
        """What keeps layers that are imported by this handle until an image names them."""
        self._users = threading.Condition()
        lifetime = Lifetime(path, fd, self._users)
        self.lifetime: Lifetime = lifetime
        self.syncs: SyncGroup = SyncGroup(lambda: lifetime.fd)
        self._shared = 0
        self._waiting = 0  # for the end of an exclusive operation
        self._unlocked = False  # an exclusive operation could not take the shared lock again
        self._exclusive: int | None = None  # the thread that has the repository alone

    @property
    def algorithm(self) -> Algorithm:
        return self.metadata.algorithm

    @property
    def fd(self) -> int:
        """The repository directory, which also carries the flock; whoever has it in hand may use it.

        Raises:
            RepositoryClosedError, WrongProcessError
        """
        return self.lifetime.fd

    @property
    def objects_fd(self) -> int:
        """``objects/``, made if it is not there; stays owned by the state.

        Raises:
            RepositoryClosedError, WrongProcessError
        """
        return self.lifetime.objects(self._open_objects)

    @property
    def closed(self) -> bool:
        return self.lifetime.closed

    def close(self) -> None:
        """Wait for all operations, then give up the lock and all descriptors; a second call does nothing."""
        self.lifetime.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"the repository {self.path} cannot be copied or sent elsewhere: open its path there")

    def _open_objects(self) -> int:
        with files.naming(self.path):
            try:
                return open_trusted("objects", flags=os.O_PATH, dir_fd=self.fd)
            except FileNotFoundError:
                files.make_directory("objects", DIRECTORY_MODE, dir_fd=self.fd)
                return open_trusted("objects", flags=os.O_PATH, dir_fd=self.fd)

    # -- what there is -------------------------------------------------------------------------

    def open_object_file(self, path: str, flags: int) -> int:
        """Open what stands at *path* below ``objects/``, through no link; the caller closes the descriptor.

        Raises:
            OSError: as `_sys.beneath.open_beneath`.
        """
        return open_beneath(path, flags, dir_fd=self.objects_fd)

    @contextlib.contextmanager
    def opened_object_file(self, path: str, flags: int) -> Iterator[int]:
        """`open_object_file` for the time of the block; an error in it that names no path is one of this file."""
        with closing(self.open_object_file(path, flags), path) as fd:
            yield fd

    def list_objects(self, directory: str) -> list[str]:
        """The names in a directory below ``objects/``, or in that itself (``.``), sorted.

        Raises:
            OSError: there is no such directory, or it cannot be read.
        """
        with opened_beneath(directory, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.objects_fd) as fd:
            return sorted(os.listdir(fd))

    def lstat(self, path: str) -> os.stat_result:
        """What stands at *path*, relative to the repository; of a link, the link."""
        return os.stat(path, dir_fd=self.fd, follow_symlinks=False)

    def follow(self, path: str) -> os.stat_result:
        """What stands at *path*, relative to the repository; of a link, what that leads to."""
        return os.stat(path, dir_fd=self.fd)

    def is_guarded(self, object_id: ObjectId) -> bool:
        """Whether the kernel must guard an object by fs-verity, as everywhere in a secure repository."""
        return self.secure

    def require_writable(self) -> None:
        """Refuse before anything is read or written in vain.

        Raises:
            ReadOnlyRepositoryError: unknown features, a read-only mount, or missing permission.
        """
        fd = self.fd
        if unknown := self.metadata.unknown_read_only:
            raise ReadOnlyRepositoryError(self.path, f"it uses features unknown to this version: {', '.join(unknown)}")
        with files.naming(self.path):
            is_read_only = os.fstatvfs(fd).f_flag & os.ST_RDONLY
        if is_read_only:
            raise ReadOnlyRepositoryError(self.path, "the file system is mounted read-only")
        if not os.access(".", os.W_OK, dir_fd=fd, effective_ids=True):
            raise ReadOnlyRepositoryError(self.path, "permission denied")

    # -- who may work beside whom --------------------------------------------------------------

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Hold off exclusive operations of other threads, during an operation that may run beside others.

        Another process is kept away by its lock on the repository; this does the same within the handle.
        """
        user = self.lifetime.begin(nested=True)
        try:
            with self._beside_others():
                yield
        finally:
            self.lifetime.end(user)

    @contextlib.contextmanager
    def _beside_others(self) -> Iterator[None]:
        with self._users:
            self._waiting += 1
            try:
                self._users.wait_for(lambda: self._exclusive in (None, threading.get_ident()))
            finally:
                self._waiting -= 1
            if self._unlocked:
                self._lock_shared()
            self._shared += 1
        try:
            yield
        finally:
            with self._users:
                self._shared -= 1
                self._users.notify_all()

    @contextlib.contextmanager
    def exclusive(
        self, operation: str, timeout: float | None = None, check: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Have the repository alone: no other operation in this handle, no other handle anywhere.

        Whoever waits holds no lock meanwhile, so that two who wait do not keep each other out; operations of this
        handle go on.  The shared lock is held as before when this ends in any way, which may mean waiting for somebody
        else's exclusive operation.

        Args:
            timeout: in seconds; 0 waits for nobody.
            check: called now and then while waiting; what it raises ends the wait.

        Raises:
            RepositoryInUseError: not within *timeout* seconds.
        """
        with self.lifetime.using(), self._alone(operation, timeout, check):
            yield

    @contextlib.contextmanager
    def _alone(self, operation: str, timeout: float | None, check: Callable[[], object] | None) -> Iterator[None]:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._exclude_users(operation, end, check)
            try:
                if self._lock_alone(operation, end, check):
                    yield
                    return
            finally:
                # A conversion that failed, or an error inside, must not leave us without the shared lock.
                try:
                    self._lock_shared()
                finally:
                    with self._users:
                        self._exclusive = None
                        self._users.notify_all()

    def _lock_shared(self) -> None:
        """Take the shared lock; if that fails, the next who uses the handle has to begin with it."""
        self._unlocked = True
        locks.lock(self.fd, exclusive=False)
        self._unlocked = False

    def _exclude_users(self, operation: str, end: float, check: Callable[[], object] | None) -> None:
        with self._users:
            while self._exclusive is not None or self._shared or self._waiting:
                left = end - time.monotonic()
                if left <= 0:
                    raise RepositoryInUseError(self.path, operation, locks.lock_holders(self.fd))
                self._users.wait(min(left, locks.LOCK_POLL if check else threading.TIMEOUT_MAX))
                if check is not None:
                    check()
            self._exclusive = threading.get_ident()

    def _lock_alone(self, operation: str, end: float, check: Callable[[], object] | None) -> bool:
        """Exchange the shared lock; False, without any lock, as soon as this handle is needed by others."""
        while not locks.lock(self.fd, exclusive=True, timeout=0):
            if time.monotonic() >= end:
                raise RepositoryInUseError(self.path, operation, locks.lock_holders(self.fd))
            if check is not None:
                check()
            if self._waiting:
                return False
            time.sleep(min(locks.LOCK_POLL, max(0.0, end - time.monotonic())))
        return True
