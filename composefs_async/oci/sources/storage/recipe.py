"""``tar-split``: how a layer's tar is put together from literal pieces and the files that it was unpacked to; blocks.

Owns the format (vbatts/tar-split, tar/storage): gzip of a JSON object a line, either a piece of the archive, or the
name and size of a file whose content stands there. Does not own the files (`files`). What is read is bounded: a line
by 8 MiB, the layer by the limits of the import.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ....errors import CompressionError, OciError
from ...limits import Limits
from ..base import LocalBlob
from ..plain import PlainReader

__all__ = ["FilePart", "SparseLayerError", "read_recipe", "recipe_size"]


class SparseLayerError(OciError):
    """A layer has sparse files, whose maps a store does not keep: it cannot be put together again."""


_LINE = 8 << 20
_PIECE = 1 << 20
_SPARSE = b"GNU.sparse."
_SPARSE_REASON = "layer has sparse files, which containers-storage does not keep; pull from where the image came from"


@dataclass(frozen=True, slots=True)
class FilePart:
    """The content of a file of the layer stands here."""

    name: bytes
    size: int
    """In bytes; never 0."""
    checksum: bytes
    """CRC-64 of ISO 3309, big-endian."""


def read_recipe(blob: LocalBlob, layer: str, limits: Limits) -> Iterator[bytes | FilePart]:
    """The parts of a layer, in order.

    Args:
        layer: for messages.

    Raises:
        OciError: the file is damaged, or the layer has sparse files, which are not kept.
    """
    segment = b""
    for position, line in enumerate(_lines(blob, layer, limits)):
        entry = _entry(line, layer, position)
        if entry["type"] == 2:
            segment = _decoded(entry.get("payload"), layer, position)
            if segment:
                yield segment
        elif size := entry.get("size") or 0:
            if _SPARSE in segment:
                raise SparseLayerError(layer, _SPARSE_REASON)
            raw = entry.get("name_raw")
            name = _decoded(raw, layer, position) if raw else _name(entry, layer, position)
            yield FilePart(name, size, _decoded(entry.get("payload"), layer, position))


def recipe_size(blob: LocalBlob, layer: str, limits: Limits) -> int:
    """The size of a layer's tar, in bytes; reads the whole recipe."""
    return sum(part.size if isinstance(part, FilePart) else len(part) for part in read_recipe(blob, layer, limits))


def _lines(blob: LocalBlob, layer: str, limits: Limits) -> Iterator[bytes]:
    reader, buffer, rest = PlainReader(blob, limits), memoryview(bytearray(_PIECE)), b""
    try:
        while size := reader.readinto(buffer):
            *lines, rest = (rest + buffer[:size]).split(b"\n")
            yield from lines
            if len(rest) > _LINE:
                raise OciError(layer, f"a line of its tar-split is longer than {_LINE} bytes")
    except CompressionError as error:
        raise OciError(layer, f"its tar-split is damaged: {error.reason}") from None
    if rest:
        yield rest


def _entry(line: bytes, layer: str, position: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    size = entry.get("size") or 0 if isinstance(entry, dict) else 0
    if (
        not isinstance(entry, dict)
        or entry.get("type") not in (1, 2)
        or entry.get("position") != position
        or not isinstance(size, int)
        or isinstance(size, bool)
        or size < 0
    ):
        raise OciError(layer, f"its tar-split is damaged at line {position + 1}")
    return entry


def _decoded(text: object, layer: str, position: int) -> bytes:
    if not text:
        return b""
    try:
        return binascii.a2b_base64(text, strict_mode=True) if isinstance(text, str) else _bad(layer, position)
    except binascii.Error:
        return _bad(layer, position)


def _name(entry: dict[str, Any], layer: str, position: int) -> bytes:
    name = entry.get("name")
    try:
        return name.encode() if isinstance(name, str) else _bad(layer, position)
    except UnicodeEncodeError:
        return _bad(layer, position)


def _bad(layer: str, position: int) -> bytes:
    raise OciError(layer, f"its tar-split is damaged at line {position + 1}")
