"""A store in S3, Google Cloud Storage or Azure Blob Storage, through obstore (the extra ``s3``).

Owns translating calls and errors.  obstore is called synchronously, in worker threads, so that one implementation
serves every event loop.  It repeats nothing by itself: a conditional write that is repeated fails on its own success.
Credentials come from the environment, as obstore finds them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BlobMissingError, ConditionalWritesError, StoreError, UnknownOutcomeError
from .base import (
    BlobInfo,
    Buffer,
    PreconditionError,
    RangeIgnoredError,
    Stored,
    ThrottledError,
    TransientError,
    Version,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta

__all__ = ["ObjectStoreBackend"]

_PIECE = 1 << 20
_SINGLE = 64 << 20
"""Larger blobs are sent in parts."""
_DELETE_BATCH = 1000
_OPTIONS = {"timeout": "15m", "connect_timeout": "5s", "read_timeout": "10s"}
_STATUS = re.compile(r"status code: (\d{3})")
_SECRET = re.compile(r"\?[^\s\"')]*")
_BUSY = (429, 503)


class ObjectStoreBackend:
    """The store below *url*.

    Args:
        endpoint: of a server that is not the cloud's own.
    """

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import from_url
        except ImportError:
            raise StoreError(url, "obstore is not installed; install composefs-async[s3]") from None
        self.url: str = url.rstrip("/")
        self._api, self._errors = obstore, exceptions
        self._endpoint = endpoint
        self._from_url: Any = from_url
        self._store = self._open({})

    def _open(self, config: dict[str, Any]) -> Any:
        options: dict[str, Any] = dict(_OPTIONS)
        if self._endpoint:
            config = {**config, "endpoint": self._endpoint}
            options["allow_http"] = self._endpoint.startswith("http://")
        try:
            return self._from_url(self.url, config=config, client_options=options, retry_config={"max_retries": 0})
        except (self._errors.BaseError, ValueError) as error:
            raise StoreError(self.url, _brief(error)) from None

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a blob, or *length* bytes of it from *start* on, by one request."""
        options: Any = {} if length is None and not start else {"range": _range(start, length)}
        try:
            # What obstore gives is not copied: it has the form of a buffer, which is all that is needed.
            yield from self._api.get(self._store, key, options=options).stream(_PIECE)
        except self._errors.NotSupportedError:
            raise RangeIgnoredError(self.url, f"{key}: the server gives no ranges") from None
        except FileNotFoundError:
            raise BlobMissingError(self.url, key) from None
        except (self._errors.BaseError, OSError) as error:
            if _status(error) != 416:  # the blob ends before the range begins: nothing comes
                raise self._failed(key, error) from None

    def put(self, key: str, data: Buffer | Path) -> None:
        """Store a blob, a large file in several parts."""
        large = isinstance(data, Path) and data.stat().st_size > _SINGLE
        try:
            self._api.put(self._store, key, data, use_multipart=large, mode="overwrite")
        except (self._errors.BaseError, OSError) as error:
            raise self._failed(key, error) from None

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Replace a document by a conditional request if it still has the version *expected*."""
        mode: Any = "create" if expected is None else json.loads(expected)
        try:
            return _version(self._api.put(self._store, key, data, mode=mode, use_multipart=False))
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError, FileNotFoundError):
            raise PreconditionError(self.url, f"{key} has changed") from None
        except self._errors.NotSupportedError as error:
            raise ConditionalWritesError(self.url, f"it has no conditional writes: {_brief(error)}") from None
        except (self._errors.BaseError, OSError) as error:
            raise self._swap_failed(key, error) from None

    def _swap_failed(self, key: str, error: Exception) -> StoreError:
        status = _status(error)
        if status == 409:  # another write was under way
            return PreconditionError(self.url, f"{key} is being changed")
        if status in (400, 405, 501):
            return ConditionalWritesError(self.url, f"it has no conditional writes: {_brief(error)}")
        if status is None or status >= 500 or status == 429:
            return UnknownOutcomeError(self.url, key, _brief(error))
        return self._failed(key, error)

    def read(self, key: str, limit: int) -> Stored | None:
        """Return a document of at most *limit* bytes with its version; None if it is missing."""
        try:
            found = self._api.get(self._store, key)
            if found.meta["size"] > limit:
                raise StoreError(self.url, f"{key} has more than {limit} bytes")
            return Stored(found.bytes().to_bytes(), _version(found.meta), found.meta["last_modified"].timestamp())
        except FileNotFoundError:
            return None
        except (self._errors.BaseError, OSError) as error:
            raise self._failed(key, error) from None

    def head(self, key: str) -> BlobInfo | None:
        """Return the size and age of a blob; None if it is missing."""
        try:
            return _info(self._api.head(self._store, key))
        except FileNotFoundError:
            return None
        except (self._errors.BaseError, OSError) as error:
            raise self._failed(key, error) from None

    def list(self, prefix: str, after: str = "") -> Iterator[BlobInfo]:
        """Yield the blobs whose keys begin with *prefix*, sorted, after the key *after*."""
        directory = prefix.rpartition("/")[0]
        try:
            listed = [
                _info(meta)
                for batch in self._api.list(self._store, directory, offset=after or None)
                for meta in batch
                if meta["path"].startswith(prefix) and meta["path"] > after
            ]
        except (self._errors.BaseError, OSError) as error:
            raise self._failed(prefix, error) from None
        return iter(sorted(listed, key=lambda info: info.key))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete blobs, many with one request; those that are missing are skipped."""
        for at in range(0, len(keys), _DELETE_BATCH):
            some = list(keys[at : at + _DELETE_BATCH])
            try:
                self._api.delete(self._store, some)
            except (self._errors.BaseError, OSError) as error:
                if _status(error) in _BUSY:
                    raise self._failed(some[0], error) from None
                # Some servers that speak S3 know no deletion in bulk; elsewhere a key may have been missing.
                self._delete_singly(some)

    def _delete_singly(self, keys: Sequence[str]) -> None:
        """Delete one key after the other."""
        store = self._open({"disable_bulk_delete": True}) if self.url.startswith("s3://") else self._store
        for key in keys:
            try:
                self._api.delete(store, key)
            except FileNotFoundError:
                continue
            except (self._errors.BaseError, OSError) as error:
                raise self._failed(key, error) from None

    def close(self) -> None:
        """Do nothing: connections end with the object."""

    def _failed(self, key: str, error: Exception) -> StoreError:
        reason = f"{key}: {_brief(error)}"
        status = _status(error)
        if status in _BUSY:
            return ThrottledError(self.url, reason)
        if isinstance(error, self._errors.GenericError) and (status is None or status >= 500):
            return TransientError(self.url, reason)
        return StoreError(self.url, reason)


def _range(start: int, length: int | None) -> Any:
    return {"offset": start} if length is None else (start, start + length)


def _info(meta: ObjectMeta) -> BlobInfo:
    return BlobInfo(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _version(found: Any) -> Version:
    """What a condition needs of a result or of what is known about an object: without keys that have no value."""
    return json.dumps({key: found[key] for key in ("e_tag", "version") if found.get(key) is not None})


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _brief(error: Exception) -> str:
    """The first line of an error, without what may be a secret."""
    text = str(error).partition("\n")[0].partition("<?xml")[0].strip(" :")
    return _SECRET.sub("", text) or type(error).__name__
