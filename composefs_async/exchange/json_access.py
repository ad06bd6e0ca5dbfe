"""Members of JSON documents of a store, with the store's errors; no I/O, and nothing about what they mean."""

from __future__ import annotations

from typing import Any

from ..errors import OciError, StoreFormatError
from ..oci.jsondoc import JsonObject, parse_json

__all__ = ["child_of", "children_of", "objects_of", "parse", "text_of", "texts_of", "whole_of"]

_MAX_SIZE = (1 << 63) - 1


def parse(raw: bytes, what: str, limit: int) -> JsonObject:
    """Read a JSON object."""
    try:
        return parse_json(raw, what, limit=limit)
    except OciError as error:
        raise StoreFormatError(what, error.reason) from None


def text_of(document: JsonObject, key: str) -> str:
    """The string *key*; empty if it is absent."""
    try:
        return document.get(key, str) or ""
    except OciError as error:
        raise StoreFormatError(error.what, error.reason) from None


def texts_of(document: JsonObject, key: str) -> dict[str, str]:
    """The object *key* of strings; empty if it is absent."""
    try:
        return document.texts(key)
    except OciError as error:
        raise StoreFormatError(error.what, error.reason) from None


def objects_of(document: JsonObject, key: str) -> dict[str, dict[str, Any]]:
    """The object *key* of objects; empty if it is absent."""
    found = document.members.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise StoreFormatError(document.name, f"{key!r} is not an object of objects")
    return found


def child_of(document: JsonObject, key: str, what: str) -> JsonObject:
    """The object *key*, which must be there."""
    found = document.members.get(key)
    if not isinstance(found, dict):
        raise StoreFormatError(what, f"{key!r} is missing or no object")
    return JsonObject(what, found)


def children_of(document: JsonObject, key: str, what: str) -> list[JsonObject]:
    """The list *key* of objects; empty if it is absent."""
    try:
        return document.children(key) or []
    except OciError as error:
        raise StoreFormatError(what, error.reason) from None


def whole_of(document: JsonObject, key: str) -> int:
    """The number *key* of bytes or things, which must be there."""
    found = document.members.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _MAX_SIZE:
        raise StoreFormatError(document.name, f"{key!r} is no number of bytes or objects")
    return found
