"""Strict and typed access to untrusted JSON objects; no I/O, and nothing about what they mean.

Size is bounded before parsing and nesting by the parser.  On the side of "no two readers may understand the
same bytes differently": a key that occurs twice in an object is an error, and so are NaN, Infinity, other
encodings than UTF-8, and half a surrogate pair in a string that is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from ..errors import OciError

__all__ = ["DOCUMENT_LIMIT", "JsonObject", "brief", "parse_json", "parse_json_list"]

DOCUMENT_LIMIT = 4 << 20
"""Bytes of one document; registries refuse larger manifests (OCI distribution specification, "Pushing Manifests")."""

_T = TypeVar("_T")
_QUOTED = 160  # characters of untrusted text in an error message
_KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The members of a JSON object; *name* is what error messages call the document.

    null counts as absent, except that it is an empty list where a list belongs: Go writes its empty ones so.
    """

    name: str
    members: Mapping[str, Any]

    def get(self, key: str, kind: type[_T]) -> _T | None:
        """The member *key*; None if it is absent.

        Raises:
            OciError: it is of another *kind*.
        """
        value = self.members.get(key)
        return None if value is None else self._typed(repr(key), value, kind)

    def child(self, key: str) -> JsonObject | None:
        """Return the object at *key*; None if there is none, an error if it is no object."""
        members = self.get(key, dict[str, Any])
        return None if members is None else JsonObject(self.name, members)

    def list_of(self, key: str, kind: type[_T]) -> list[_T] | None:
        """The list *key*, all of whose elements are of *kind*; None if it is absent, but not if it is null."""
        if key not in self.members:
            return None
        values = self.get(key, list[Any]) or []
        return [self._typed(f"an element of {key!r}", value, kind) for value in values]

    def children(self, key: str) -> list[JsonObject] | None:
        """The objects in a list that is a member, as `list_of` gives other values."""
        found = self.list_of(key, dict[str, Any])
        return None if found is None else [JsonObject(self.name, members) for members in found]

    def texts(self, key: str) -> dict[str, str]:
        """The object *key*, all of whose values are strings or null, which counts as absent; empty if it is absent."""
        members = self.get(key, dict[str, Any]) or {}
        what = f"a member of {key!r}"
        return {
            self._typed(what, name, str): self._typed(what, value, str)
            for name, value in members.items()
            if value is not None
        }

    def _typed(self, what: str, value: object, kind: type[_T]) -> _T:
        base = getattr(kind, "__origin__", kind)
        if not isinstance(value, base) or isinstance(value, bool):
            raise OciError(self.name, f"{what} is {_kind(value)} where {_KINDS[base]} belongs")
        if base is str:
            self._check_text(what, str(value))
        return cast("_T", value)

    def _check_text(self, what: str, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise OciError(self.name, f"{what} has half a surrogate pair: {brief(text)}") from None


def parse_json(raw: bytes, name: str, *, limit: int = DOCUMENT_LIMIT) -> JsonObject:
    """A JSON object, with the strictness that this module's docstring describes.

    Raises:
        OciError: it is larger than *limit* bytes or anything else than an object.
    """
    return JsonObject(name, _parsed(raw, name, limit, dict))


def parse_json_list(raw: bytes, name: str, *, limit: int = DOCUMENT_LIMIT) -> list[JsonObject]:
    """A JSON array of objects, with the same strictness.

    Raises:
        OciError: it is larger than *limit* bytes or anything else than such an array.
    """
    holder = JsonObject(name, {"document": _parsed(raw, name, limit, list)})
    return [JsonObject(name, members) for members in holder.list_of("document", dict[str, Any]) or ()]


def _parsed(raw: bytes, name: str, limit: int, kind: type[_T]) -> _T:
    if len(raw) > limit:
        raise OciError(name, f"it has {len(raw)} bytes, more than the limit of {limit}")
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise OciError(name, f"it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise OciError(name, "it is nested too deeply") from None
    except ValueError as error:  # malformed, or a number of thousands of digits
        raise OciError(name, f"it is not valid JSON: {error}") from None
    if not isinstance(document, kind):
        raise OciError(name, f"it is {_kind(document)} where {_KINDS[kind]} belongs")
    return document


def brief(text: str) -> str:
    """Untrusted *text* quoted for an error message, cut if it is long."""
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {brief(key)} occurs twice")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _kind(value: object) -> str:
    return "a boolean" if isinstance(value, bool) else _KINDS.get(type(value), "null")
