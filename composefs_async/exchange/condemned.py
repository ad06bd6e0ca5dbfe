"""The description of a store and the list of what garbage collection will delete; bytes in, values out, no I/O."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ..digest import Algorithm
from ..errors import OciError, StoreFormatError, UnsupportedFeatureError
from ..oci.jsondoc import JsonObject, parse_json
from .documents import canonical

__all__ = ["CONDEMNED_KEY", "DESCRIPTION_KEY", "Condemned", "Description", "format_time", "parse_time"]

DESCRIPTION_KEY = "composefs-store.json"
CONDEMNED_KEY = "gc/condemned.json"
CLOCK_KEY = "gc/clock"
LAYOUT_KEY = "oci-layout"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

CONDEMNED_LIMIT = 64 << 20
DESCRIPTION_LIMIT = 64 << 10
DEFAULT_GRACE = 86400
MIN_GRACE = 60
"""Seconds: the times of stores have whole seconds."""

_HEX = re.compile(r"[0-9a-f]{64}")
_FEATURES = ("compatible", "read-only-compatible", "incompatible")


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC, with microseconds where there are any."""
    found = datetime.fromtimestamp(seconds, UTC)
    return found.isoformat(timespec="microseconds" if found.microsecond else "seconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Seconds since 1970 of a time in RFC 3339.

    Raises:
        ValueError
    """
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return found.timestamp()


@dataclass(frozen=True, slots=True)
class Description:
    """What a store is: the content of composefs-store.json, which is written once."""

    id: str
    algorithm: Algorithm
    grace: int = DEFAULT_GRACE
    """Seconds for which garbage is condemned before it is deleted."""
    cas: Literal["conditional", "none"] = "conditional"
    """Whether names change by conditional writes; without them one writer is promised."""
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]], hash=False)

    @classmethod
    def new(cls, algorithm: Algorithm, grace: int = DEFAULT_GRACE, *, single_writer: bool = False) -> Description:
        """The description of a new store.

        Raises:
            ValueError: *grace* is less than a minute.
        """
        if grace < MIN_GRACE:
            raise ValueError(f"a grace time of {grace} seconds is less than {MIN_GRACE}")
        return cls(str(uuid.uuid4()), algorithm, grace, "none" if single_writer else "conditional")

    def encode(self) -> bytes:
        """The canonical bytes."""
        features = {each: list(self.features.get(each, ())) for each in _FEATURES}
        values = {"version": 1, "id": self.id, "algorithm": self.algorithm.text, "grace": self.grace}
        return canonical({**values, "cas": self.cas, "features": features})

    @classmethod
    def parse(cls, raw: bytes, url: str) -> Description:
        """Read the description of the store at *url*.

        Raises:
            StoreFormatError
            UnsupportedFeatureError: it has incompatible features.
        """
        what = f"{url}/{DESCRIPTION_KEY}"
        document = _object(raw, what, DESCRIPTION_LIMIT)
        try:
            algorithm = Algorithm.parse(document.get("algorithm", str) or "")
            grace, cas = document.get("grace", int), document.get("cas", str)
            features = {
                each: tuple((document.child("features") or JsonObject(what, {})).list_of(each, str) or ())
                for each in _FEATURES
            }
        except OciError as error:
            raise StoreFormatError(what, error.reason) from None
        except ValueError as error:
            raise StoreFormatError(what, str(error)) from None
        if document.members.get("version") != 1 or grace is None or grace < MIN_GRACE or grace > 1 << 32:
            raise StoreFormatError(what, "its version is not 1, or its grace time is missing or out of bounds")
        if cas not in ("conditional", "none"):
            raise StoreFormatError(what, f"{cas!r} is no kind of writing that is known")
        if features["incompatible"]:
            raise UnsupportedFeatureError(url, features["incompatible"])
        identity = document.members.get("id")
        return cls(str(identity or ""), algorithm, grace, "none" if cas == "none" else "conditional", features)


@dataclass(frozen=True, slots=True)
class Condemned:
    """The list gc/condemned.json: blobs that garbage collection will delete when their time has come."""

    owner: str = ""
    """Which run of garbage collection is at work; empty if none is."""
    blobs: Mapping[str, float | None] = field(default_factory=dict[str, float | None], hash=False)
    """Since when (seconds since 1970, by the store's clock) each is on the list, by its sha256 in hexadecimal."""

    def __contains__(self, digest: str) -> bool:
        return digest.removeprefix("sha256:") in self.blobs

    def encode(self) -> bytes:
        """The canonical bytes."""
        times = {name: None if since is None else format_time(since) for name, since in self.blobs.items()}
        return canonical({"version": 1, "owner": self.owner or None, "blobs": times})

    @classmethod
    def parse(cls, raw: bytes | None, url: str) -> Condemned:
        """Read the list; one that is not there is empty.

        Raises:
            StoreFormatError
        """
        if raw is None:
            return cls()
        what = f"{url}/{CONDEMNED_KEY}"
        document = _object(raw, what, CONDEMNED_LIMIT)
        entries: Any = document.members.get("blobs")
        owner: Any = document.members.get("owner") or ""
        if document.members.get("version") != 1 or not isinstance(entries, dict) or not isinstance(owner, str):
            raise StoreFormatError(what, "it is no list of version 1")
        blobs: dict[str, float | None] = {}
        for name, since in entries.items():
            if not _HEX.fullmatch(name) or not (since is None or isinstance(since, str)):
                raise StoreFormatError(what, f"{name[:160]!r} is no entry")
            try:
                blobs[name] = None if since is None else parse_time(since)
            except ValueError as error:
                raise StoreFormatError(what, str(error)) from None
        return cls(owner, blobs)


def _object(raw: bytes, what: str, limit: int) -> JsonObject:
    try:
        return parse_json(raw, what, limit=limit)
    except OciError as error:
        raise StoreFormatError(what, error.reason) from None
