"""Leases: what an interrupted import has stored, and not yet named, stays for the next try.

Owns the files ``.composefs-async/leases/DIGEST.json``, one for each manifest whose import has begun and not ended, and
``name-….json``, one for each lease that somebody else named.
Does not own importing (`composefs_async.oci`), nor deleting (`collect`), which keeps every object that was stored
since the start of a lease, and everything that its finished layers need.

Nothing of a lease is flushed, and neither is what it speaks of: after a crash of the machine, which the boot's id
tells, or where that cannot be read, its layers are not believed.  A file that cannot be understood is no lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .._repo.state import RepoState
from .._sys.beneath import opened_beneath
from ..digest import ObjectId, check_content_digest, sha256_content_digest
from ..errors import ComposefsError, FormatError, InvalidNameError
from ..results import Lease
from . import reachability, state_dir

__all__ = ["DURATION", "LeaseHolder", "all_leases", "begin", "begin_named", "drop", "expire"]

DURATION = 24 * 3600.0
"""Seconds that a lease holds after the last step of its import, unless told otherwise."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_DIRECTORY = "leases"
_LIMIT = 16 << 20
_SUFFIX = ".json"
_NAMED = "name-"
_NAME_LIMIT = 1024  # bytes of the name of a lease
_VERSION = 1
_LAST_NANOSECOND = (1 << 63) - 1
_LAST_SECOND = 253402300799  # of the year 9999, after which dates have no text
_WRITES = 16
"""A record that grows is written so often while it doubles, about; what it costs in all is linear in its layers."""
_PATIENCE = 1.0
"""Seconds after which a layer is written down in any case when the next one comes."""

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class _Record:
    """What a file says."""

    key: str
    """The digest of a manifest, or `_NAMED` and the digits of a name's."""
    reference: str
    """Where the image comes from, or the name."""
    started: int
    """In nanoseconds, by the clock of the file system."""
    expires: float
    boot: str
    layers: dict[str, ObjectId]

    @property
    def expired(self) -> bool:
        return self.expires <= time.time()

    @property
    def believed(self) -> dict[str, ObjectId]:
        return self.layers if self.boot and self.boot == _boot_id() else {}

    def encode(self) -> bytes:
        layers = {diff_id: stream_id.hex() for diff_id, stream_id in self.layers.items()}
        values = {
            "version": _VERSION,
            "manifest": self.key,
            "reference": self.reference,
            "started": self.started,
            "expires": self.expires,
            "boot": self.boot,
            "layers": layers,
        }
        return json.dumps(values, indent=1).encode()

    @classmethod
    def decode(cls, content: bytes, key: str) -> _Record | None:
        try:
            values: dict[str, Any] = json.loads(content)
            if values["version"] != _VERSION or values["manifest"] != key:
                return None
            layers = {str(diff_id): ObjectId.from_hex(text) for diff_id, text in values["layers"].items()}
            started = _number(values["started"], int, _LAST_NANOSECOND)
            expires = _number(values["expires"], float, _LAST_SECOND)
            return cls(key, str(values["reference"]), started, expires, str(values["boot"]), layers)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, FormatError):
            return None


def _number(value: object, kind: Callable[[int | float], N], last: int) -> N:
    """A time, if it is one that everybody can count with: finite, since 1970, and not after *last*."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= last:
        raise ValueError(value)
    return kind(value)


class LeaseHolder:
    """The lease of an import that runs; used from several threads."""

    def __init__(self, state: RepoState, record: _Record, duration: float) -> None:
        self._state, self._record, self._duration = state, record, duration
        self._mutex = threading.Lock()
        self._unwritten, self._written_at = 0, time.monotonic()

    def find(self, diff_id: str) -> ObjectId | None:
        """The stream of a layer that an earlier import of this image finished, if all of it is there."""
        stream_id = self._record.layers.get(diff_id)
        return stream_id if stream_id is not None and _is_whole(self._state, stream_id) else None

    def finished(self, diff_id: str, stream_id: ObjectId) -> None:
        """Remember a layer that is in place and has no name.

        Of many layers the last few are written down together: if the process dies before that, they are read again.
        """
        with self._mutex:
            self._record.layers[diff_id] = stream_id
            self._unwritten += 1
            late = time.monotonic() - self._written_at > _PATIENCE
            if late or self._unwritten * _WRITES >= len(self._record.layers):
                self._save()

    def save(self) -> None:
        """Write down what `finished` has put off, where an import ends early."""
        with self._mutex:
            if self._unwritten:
                self._save()

    def _save(self) -> None:
        self._record = replace(self._record, expires=time.time() + self._duration)
        _write(self._state, self._record)
        self._unwritten, self._written_at = 0, time.monotonic()

    @property
    def resumable(self) -> bool:
        """Whether another process could go on with it: not where it cannot tell whether the machine has crashed."""
        return bool(self._record.boot)

    def end(self) -> None:
        """The image has its names, which keep it from now on."""
        state_dir.remove(self._state, _file(self._record.key))

    def held_bytes(self) -> int:
        """The size of all objects that were stored since the lease began, which others may have stored, too.

        Blocks for a look at every object; what cannot be looked at is not counted.
        """
        return sum(
            status.st_size
            for status in _statuses(self._state)
            if stat.S_ISREG(status.st_mode) and status.st_ctime_ns >= self._record.started
        )

    @property
    def lease(self) -> Lease:
        """What it keeps at the moment."""
        return _lease(self._record)


def _statuses(state: RepoState) -> Iterator[os.stat_result]:
    """What is known of the objects without opening them."""
    for number in range(256):
        with (
            contextlib.suppress(OSError),
            opened_beneath(f"{number:02x}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=state.objects_fd) as fd,
        ):
            for name in os.listdir(fd):
                with contextlib.suppress(OSError):
                    yield os.stat(name, dir_fd=fd, follow_symlinks=False)


def begin_named(state: RepoState, name: str, duration: float | None = None) -> LeaseHolder:
    """Begin a lease under a name that somebody chooses; whoever uses the name next goes on with it.

    Raises:
        InvalidNameError: the name is empty or longer than 1024 bytes.
        ReadOnlyRepositoryError
    """
    state.require_writable()
    return _begin(state, _named(name), name, duration)


def begin(state: RepoState, manifest_digest: str, reference: str, duration: float | None = None) -> LeaseHolder:
    """Lease what will be stored from now on, or go on with the lease that an earlier import of that image left.

    Args:
        duration: in seconds after the last step of the import; 24 hours if not given.
    """
    return _begin(state, check_content_digest(manifest_digest), reference, duration)


def _begin(state: RepoState, key: str, reference: str, duration: float | None) -> LeaseHolder:
    duration = DURATION if duration is None else duration
    old = _read(state, key)
    boot = _boot_id()
    started, layers = state_dir.timestamp(state), {}
    if old is not None and not old.expired:
        started, layers = min(old.started, started), old.believed
    record = _Record(key, reference, started, time.time() + duration, boot, layers)
    _write(state, record)
    return LeaseHolder(state, record, duration)


def _is_whole(state: RepoState, stream_id: ObjectId) -> bool:
    """Whether a layer's stream can be read, and all objects that it needs are there."""
    try:
        node = reachability.read_node(state, stream_id)
    except ComposefsError:
        return False
    width = state.algorithm.digest_size
    ids = (ObjectId(node.objects[at : at + width]) for at in range(0, len(node.objects), width))
    return node.kind is reachability.Kind.STREAM and all(
        os.access(object_id.path, os.F_OK, dir_fd=state.objects_fd) for object_id in ids
    )


def all_leases(state: RepoState) -> list[Lease]:
    """The leases that hold now, sorted by digest."""
    return [_lease(record) for record in _records(state) if not record.expired]


def _lease(record: _Record) -> Lease:
    digest = None if record.key.startswith(_NAMED) else record.key
    return Lease(digest, record.reference, record.started, record.expires, dict(record.believed))


def drop(state: RepoState, name: str) -> bool:
    """End the lease of a manifest, by its digest, or of a name, so that the next gc removes what it kept.

    Returns:
        False if there is none.
    """
    with state.shared():
        state.require_writable()
        removed = [state_dir.remove(state, _file(key)) for key in _keys(name)]
        return any(removed)


def _keys(name: str) -> list[str]:
    with contextlib.suppress(FormatError):
        return [check_content_digest(name), _named(name)]
    return [_named(name)]


def _named(name: str) -> str:
    if not name or len(name.encode(errors="surrogatepass")) > _NAME_LIMIT:
        raise InvalidNameError(name[:_NAME_LIMIT], f"the name of a lease has 1 to {_NAME_LIMIT} bytes")
    return _NAMED + sha256_content_digest(name.encode(errors="surrogatepass")).partition(":")[2]


def expire(state: RepoState) -> None:
    """Remove the files of leases that hold no more."""
    for record in _records(state):
        if record.expired:
            state_dir.remove(state, _file(record.key))


# -- files -------------------------------------------------------------------------------------


def _file(key: str) -> str:
    return f"{_DIRECTORY}/{key}{_SUFFIX}"


def _records(state: RepoState) -> Iterator[_Record]:
    for name in state_dir.listing(state, _DIRECTORY):
        record = _read(state, name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
        if record is not None:
            yield record


def _read(state: RepoState, key: str) -> _Record | None:
    content = state_dir.read(state, _file(key), _LIMIT)
    return _Record.decode(content, key) if content is not None else None


def _write(state: RepoState, record: _Record) -> None:
    state_dir.write(state, _file(record.key), record.encode())


def _boot_id() -> str:
    """Nothing where it is hidden, as in containers."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
