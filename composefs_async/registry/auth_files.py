"""Files with credentials: auth.json of podman (containers-auth.json(5)) and config.json of docker; no network.

Owns the syntax of one file, and what it says about a registry.  Does not own which files there are (`credentials`),
nor asking the helpers that a file names (`helpers`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import TransportError
from .access import Credentials
from .reference import DOCKER_HUB
from .secret import Secret

__all__ = ["FILE_LIMIT", "AuthFile", "HelperNeeded", "encode_entry", "hub_key", "parse_auth_file"]

FILE_LIMIT = 4 << 20
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({"docker.io", "registry-1.docker.io", "index.docker.io"})


def hub_key(host: str) -> str:
    """The key, and the server's URL for helpers, of *host*: Docker Hub's has a history."""
    return _HUB_KEY if host == DOCKER_HUB else host


@dataclass(frozen=True, slots=True)
class HelperNeeded:
    """The file says that a program knows."""

    name: str
    """What follows ``docker-credential-``."""
    server: str
    """What it is asked for."""


@dataclass(frozen=True, slots=True)
class AuthFile:
    """What one file says."""

    path: str
    auths: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict[str, str])
    """By host."""
    store: str = ""
    """A helper for all hosts."""

    def find(self, host: str, path: str) -> Iterator[Credentials | HelperNeeded]:
        """What it has for the repository *path* of *host*, the best first; the first that works counts.

        Raises:
            TransportError: an entry is malformed.
        """
        server = hub_key(host)
        for name in dict.fromkeys((host, server)):
            if helper := self.helpers.get(name):
                yield HelperNeeded(helper, server)
                return
        for key in self._keys(host, path):
            credentials = self._entry(key)
            if credentials is not None:
                yield credentials
        if self.store:
            yield HelperNeeded(self.store, server)

    def _keys(self, host: str, path: str) -> Iterator[str]:
        parts = path.split("/") if path else []
        for length in range(len(parts), -1, -1):
            key = "/".join([host, *parts[:length]])
            if key in self.auths:
                yield key
        wanted = _normalized(host)
        for key in self.auths:
            if key != host and _is_url(key) and _normalized(key) == wanted:
                yield key

    def _entry(self, key: str) -> Credentials | None:
        entry = self.auths[key]
        if not isinstance(entry, dict):
            raise TransportError(f"{self.path}: the entry for {key} is not an object")
        username, password = _decode(entry.get("auth"))
        username = username or _string(entry.get("username"))
        password = password or _string(entry.get("password"))
        identity, token = _string(entry.get("identitytoken")), _string(entry.get("registrytoken"))
        if not (username or password or identity or token):
            return None
        return Credentials(
            username,
            Secret(password),
            Secret(identity) if identity else None,
            Secret(token) if token else None,
            self.path,
        )


def parse_auth_file(content: bytes, path: str, *, legacy: bool = False) -> AuthFile:
    """Understand a file.

    Args:
        legacy: it is a ``.dockercfg``, which has the entries at the top.

    Raises:
        TransportError: it is not valid; the text of the file is in no message.
    """
    if len(content) > FILE_LIMIT:
        raise TransportError(f"{path} is larger than {FILE_LIMIT} bytes")
    try:
        document = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError):
        raise TransportError(f"{path} is not valid JSON") from None
    if not isinstance(document, dict):
        raise TransportError(f"{path} is not a JSON object")
    if legacy:
        return AuthFile(path, document)
    auths, helpers = document.get("auths") or {}, document.get("credHelpers") or {}
    store = document.get("credsStore") or ""
    if not isinstance(auths, dict) or not isinstance(helpers, dict) or not isinstance(store, str):
        raise TransportError(f"{path}: auths, credHelpers or credsStore is of the wrong type")
    return AuthFile(path, auths, {key: str(value) for key, value in helpers.items()}, store)


def encode_entry(username: str, password: str) -> dict[str, str]:
    """An entry of a file for a name and a password."""
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def _decode(value: object) -> tuple[str, str]:
    """Name and password of ``auth``; empty if it is not there or cannot be decoded."""
    if not isinstance(value, str) or not value:
        return "", ""
    try:
        text = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    username, _, password = text.partition(":")
    return username, password.rstrip("\0")


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_url(key: str) -> bool:
    return key.startswith(("http://", "https://")) or key in _HUB_NAMES


def _normalized(key: str) -> str:
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return "index.docker.io" if host in _HUB_NAMES else host
