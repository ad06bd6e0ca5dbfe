"""URLs of stores: which kind of place each is.

Owns the syntax, and making the backend.  Credentials never stand in a URL: they come from the environment, as the
library of the place finds them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from .._aio.hops import hop
from .._aio.opening import Opening
from ..errors import StoreError
from .backends.base import BlobStore
from .backends.directory import DirectoryStore
from .pacing import RateLimit
from .store import TRANSFERS, Store

__all__ = ["is_store_url", "open_store"]

_SCHEMES: dict[str, tuple[str, str]] = {
    "s3": ("objectstore", "ObjectStoreBackend"),
    "gs": ("objectstore", "ObjectStoreBackend"),
    "az": ("objectstore", "ObjectStoreBackend"),
    "http": ("http", "HttpStore"),
    "https": ("http", "HttpStore"),
    "docker": ("registry", "RegistryStore"),
}
"""Module and class of the backend for each scheme."""


def is_store_url(text: str) -> bool:
    """Whether *text* is the URL of a store rather than a path."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and (scheme in _SCHEMES or scheme in ("file", "memory"))


def open_store(
    url: str, *, endpoint: str | None = None, limit_rate: float | RateLimit | None = None, transfers: int = TRANSFERS
) -> Opening[Store]:
    """Open the store at *url*.

    It is one of ``file:///DIRECTORY``, ``s3://BUCKET/PREFIX``, ``gs://…``, ``az://…``, ``https://…`` and
    ``docker://HOST/NAME``.
    A store behind a web server can only be read; a registry has no compare-and-swap, and collects its own garbage.
    Handles of both belong to the event loop that uses them first.

    ``async with open_store(url) as store:`` closes it at the end; ``await open_store(url)`` leaves that to the caller.
    Nothing is asked of the store yet.

    Args:
        endpoint: of an object store that is not Amazon's.
        limit_rate: bytes per second for everything that goes through the handle, or through all that share the limit.
        transfers: requests under way at once.

    Raises:
        StoreError: no place is known by such a URL, or what it needs is not installed.
    """

    async def open_it() -> Store:
        return Store(await hop(_backend, url, endpoint), limit_rate=limit_rate, transfers=transfers)

    return Opening(open_it)


def _backend(url: str, endpoint: str | None) -> BlobStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise StoreError(url, "a store in a directory is spelled file:///DIRECTORY")
        return DirectoryStore(unquote(parts.path))
    found = _SCHEMES.get(parts.scheme)
    if found is None:
        known = ", ".join(f"{each}://" for each in ("file", *_SCHEMES))
        raise StoreError(_shown(url), f"it is no URL of a store, which begins with one of {known}")
    module, name = found
    make: Callable[[str, str | None], BlobStore] = getattr(
        importlib.import_module(f".backends.{module}", __package__), name
    )
    return make(url, endpoint)


def _shown(url: str) -> str:
    """*url* without what might be a secret."""
    parts = urlsplit(url)
    return url if parts.username is None and parts.password is None else f"{parts.scheme}://…"
