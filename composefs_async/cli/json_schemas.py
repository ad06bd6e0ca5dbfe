"""Schemas of what ``--json`` prints, for each command that has it.

Owns how JSON Schemas (draft 2020-12) are made from the one table of shapes, with which the page ``json`` of the
documentation is compared, too.  All JSON that tests of the command line print is checked against it, without further
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_remote_shapes import REMOTE
from .json_shapes import REPOSITORY, Other, Shape

__all__ = ["SHAPES", "Shape", "keys", "schema"]

SHAPES: Mapping[str, Shape] = {**REPOSITORY, **REMOTE}
"""By command; an option behind it is one that changes what is printed."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PATTERNS = {
    "digest": r"^[a-z0-9]+([+._-][a-z0-9]+)*:[0-9a-zA-Z=_-]+$",
    "hex": r"^([0-9a-f]{64}|[0-9a-f]{128})$",
}


def schema(command: str, *, closed: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of what *command* prints with ``--json``.

    Args:
        closed: further keys are errors; otherwise they are allowed, as they may be added.

    Raises:
        KeyError: it has no ``--json``.
    """
    return {"$schema": _DIALECT, "title": f"{command} --json", **_expanded(SHAPES[command], closed)}


def keys(shape: Shape) -> list[str]:
    """Return the keys of an object, or of the elements of a list, with their ``?``; those of choices together."""
    if isinstance(shape, list):
        return keys(shape[0])
    if isinstance(shape, Other):
        return list(dict.fromkeys(key for each in shape.choices for key in keys(each)))
    return list(shape) if isinstance(shape, dict) else []


def _expanded(shape: Shape, closed: bool) -> dict[str, Any]:
    if isinstance(shape, str):
        pattern = _PATTERNS.get(shape)
        return {"type": shape} if pattern is None else {"type": "string", "pattern": pattern}
    if isinstance(shape, list):
        return {"type": "array", "items": _expanded(shape[0], closed)}
    if isinstance(shape, Other):
        if shape.values is not None:
            return {"type": "object", "additionalProperties": _expanded(shape.values, closed)}
        return {"anyOf": [_expanded(each, closed) for each in shape.choices]}
    found = {
        "type": "object",
        "properties": {key.removesuffix("?"): _expanded(each, closed) for key, each in shape.items()},
        "required": [key for key in shape if not key.endswith("?")],
    }
    return {**found, "additionalProperties": False} if closed else found
