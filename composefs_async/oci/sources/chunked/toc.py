"""The table of contents of a zstd:chunked layer; no I/O.

Owns the annotations that say where it is, and its JSON.  Nothing in it is believed: it says which bytes are worth
fetching, and the digest of the unpacked layer says whether they were the right ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeGuard

from ....errors import DigestMismatchError, OciError
from ...documents import Descriptor
from ...jsondoc import brief

__all__ = ["SECTION_LIMIT", "Positions", "Section", "Toc", "TocFile", "find_positions", "parse_toc"]

SECTION_LIMIT: Final = 64 << 20
"""Bytes of a table of contents, and of a tar-split, packed and unpacked; some 150,000 files have it."""

_PREFIX: Final = "io.github.containers.zstd-chunked."
_ESTARGZ: Final = "containerd.io/snapshot/stargz/toc.digest"
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_NUMBERS: Final = re.compile(r"[0-9]{1,15}(?::[0-9]{1,15})*")
_VERSION: Final = 1
_CRFS: Final = 1
"""The only type of a table of contents, minimal.ManifestTypeCRFS."""


@dataclass(frozen=True, slots=True)
class Section:
    """One zstd frame behind the content."""

    offset: int
    size: int
    """Packed, in bytes."""
    unpacked: int

    @property
    def end(self) -> int:
        """Where the byte behind it is."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the table of contents and the tar-split of a layer are, by the annotations of its descriptor."""

    toc: Section
    toc_digest: str
    """sha256, in hexadecimal, of the packed table."""
    split: Section

    @property
    def start(self) -> int:
        """Where the first of both sections begins."""
        return min(self.toc.offset, self.split.offset)

    @property
    def end(self) -> int:
        """Where the byte behind both sections is."""
        return max(self.toc.end, self.split.end)


@dataclass(frozen=True, slots=True)
class TocFile:
    """One regular file that is not empty."""

    name: bytes
    size: int
    digest: bytes
    """sha256 of its content."""
    start: int
    """Of its zstd frames in the blob."""
    end: int


@dataclass(frozen=True, slots=True)
class Toc:
    """What a table of contents says of files, in the order of the archive."""

    files: Sequence[TocFile]
    split_digest: str
    """sha256, in hexadecimal, of the packed tar-split."""


def find_positions(descriptor: Descriptor) -> Positions | None:
    """Where the sections of a layer are; None if it has none that can be used, and is pulled like others."""
    annotations = descriptor.annotations
    if _ESTARGZ in annotations:  # which of two tables would count?
        return None
    checksum = _DIGEST.fullmatch(annotations.get(f"{_PREFIX}manifest-checksum", ""))
    toc = _numbers(annotations.get(f"{_PREFIX}manifest-position", ""), 4)
    split = _numbers(annotations.get(f"{_PREFIX}tarsplit-position", ""), 3)
    if checksum is None or toc is None or split is None or toc[3] != _CRFS:
        return None
    found = Positions(Section(*toc[:3]), checksum[1], Section(*split))
    fits = all(
        0 < section.size <= SECTION_LIMIT and 0 < section.unpacked <= SECTION_LIMIT and section.end <= descriptor.size
        for section in (found.toc, found.split)
    )
    apart = found.toc.end <= found.split.offset or found.split.end <= found.toc.offset
    near = found.end - found.start <= found.toc.size + found.split.size + 1024
    return found if fits and apart and near else None


def _numbers(text: str, count: int) -> list[int] | None:
    if not _NUMBERS.fullmatch(text):
        return None
    found = [int(part) for part in text.split(":")]
    return found if len(found) == count else None


def parse_toc(packed: bytes, raw: bytes, positions: Positions, layer: str) -> Toc:
    """Read a table of contents.

    Args:
        packed: as it is in the blob.
        raw: what that unpacks to.
        layer: for messages.

    Raises:
        DigestMismatchError: it is not the one that the annotations name.
        OciError: it is damaged, or of a kind by which no layer can be put together.
    """
    what = f"{layer}, table of contents"
    if (found := sha256(packed).hexdigest()) != positions.toc_digest:
        raise DigestMismatchError(what, f"sha256:{positions.toc_digest}", f"sha256:{found}")
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_reduced)
    except UnicodeDecodeError:
        raise OciError(what, "it is not UTF-8") from None
    except RecursionError:
        raise OciError(what, "it is nested too deeply") from None
    except ValueError as error:
        raise OciError(what, f"it is not valid: {error}") from None
    entries = document.get("entries") if isinstance(document, dict) else None
    if not isinstance(document, dict) or document.get("version") != _VERSION or not isinstance(entries, list):
        raise OciError(what, f"it is none of version {_VERSION}")
    split = document.get("tarSplitDigest")
    digest = _DIGEST.fullmatch(split) if isinstance(split, str) else None
    if digest is None:
        raise OciError(what, "it does not say what the tar-split is")
    files = [entry for entry in entries if isinstance(entry, TocFile)]
    at = 0
    for file in files:
        if not at <= file.start < file.end <= positions.start:
            raise OciError(what, f"{brief(file.name.decode())} is not behind the file before it")
        at = file.end
    return Toc(files, digest[1])


def _reduced(pairs: list[tuple[str, Any]]) -> Any:
    """An object as little as is needed of it: a file, nothing, or the members of the document itself."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    if "entries" in members:
        return members
    if members.get("type") != "reg" or not members.get("size"):
        return None
    name, digest, size = members.get("name"), members.get("digest"), members["size"]
    start, end = members.get("offset"), members.get("endOffset")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None or not isinstance(name, str) or not (_is_place(size) and _is_place(start) and _is_place(end)):
        raise ValueError("an entry of a file lacks its name, digest, size or place")
    if "\ufffd" in name:
        raise ValueError("a name that is not UTF-8 has been replaced")
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise ValueError("a name has half a surrogate pair") from None
    return TocFile(raw, size, bytes.fromhex(found[1]), start, end)


def _is_place(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
