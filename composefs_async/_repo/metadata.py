"""meta.json: its bytes, what they mean, and which EROFS layouts a repository wants; no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..digest import Algorithm
from ..errors import AlgorithmMismatchError, MetadataError, UnsupportedFeatureError

__all__ = ["MAX_SIZE", "ErofsFormats", "Metadata"]

MAX_SIZE = 1 << 20
"""Size of a meta.json that is still read, in bytes; real ones have some 200."""

_MAX_VERSION = 1
_V1_FLAG = "v1_erofs"
_KNOWN_READ_ONLY = frozenset({_V1_FLAG})
_KNOWN_INCOMPATIBLE: frozenset[str] = frozenset()
_CLASSES = ("compatible", "read-only-compatible", "incompatible")


@dataclass(frozen=True, slots=True)
class ErofsFormats:
    """The EROFS layouts of a repository's images: 0, 1 (C composefs) or 2 (composefs-rs)."""

    default: int
    extra: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(sorted(set(self.extra))))
        if any(version not in (0, 1, 2) for version in (self.default, *self.extra)):
            raise ValueError(f"EROFS versions are 0, 1 and 2, not {[self.default, *self.extra]}")

    def __iter__(self) -> Iterator[int]:
        """Every version an image is made in, the default first."""
        yield self.default
        yield from (version for version in self.extra if version != self.default)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What meta.json says.  Two are equal if composefs-rs takes them for equal."""

    algorithm: Algorithm
    version: int = 1
    compatible: tuple[str, ...] = ()
    read_only_compatible: tuple[str, ...] = ()
    incompatible: tuple[str, ...] = ()
    erofs_formats: ErofsFormats | None = None
    """As stored; None for a file that does not mention it, which means version 2."""

    @classmethod
    def new(cls, algorithm: Algorithm, formats: ErofsFormats | None) -> Metadata:
        """Metadata for a new repository; without *formats* in the form from before there was a choice, version 2."""
        flags = (_V1_FLAG,) if formats and formats.default == 1 else ()
        return cls(algorithm, read_only_compatible=flags, erofs_formats=formats)

    @property
    def formats(self) -> ErofsFormats:
        """The effective layouts: {2} together with the flag ``v1_erofs`` reads as {1}, as in composefs-rs."""
        stored = self.erofs_formats or ErofsFormats(2)
        return ErofsFormats(1) if stored == ErofsFormats(2) and _V1_FLAG in self.read_only_compatible else stored

    @property
    def unknown_read_only(self) -> tuple[str, ...]:
        """Features that allow reading but forbid this version to write."""
        return tuple(name for name in self.read_only_compatible if name not in _KNOWN_READ_ONLY)

    def encode(self) -> bytes:
        """The bytes that composefs-rs writes."""
        features = dict(
            zip(_CLASSES, map(list, (self.compatible, self.read_only_compatible, self.incompatible)), strict=True)
        )
        document: dict[str, Any] = {"version": self.version, "algorithm": self.algorithm.text, "features": features}
        if self.erofs_formats is not None:
            document["erofs_formats"] = {"default": self.erofs_formats.default}
            if self.erofs_formats.extra:
                document["erofs_formats"]["extra"] = list(self.erofs_formats.extra)
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes, path: str) -> Metadata:
        """Safe for untrusted input; strict where composefs-rs is, except for what it cannot mean.

        Raises:
            MetadataError: not a meta.json.
        """
        try:
            document = json.loads(content.decode(), object_pairs_hook=_Pairs, parse_constant=_refuse)
            return cls._from_document(document)
        except (ValueError, RecursionError) as error:
            raise MetadataError(path, f"not a valid meta.json: {error}") from None

    @classmethod
    def _from_document(cls, document: Any) -> Metadata:
        top = _struct(document, ("version", "algorithm", "features", "erofs_formats"), "meta.json")
        version = top.get("version")
        if type(version) is not int or not 0 <= version < 1 << 32:
            raise ValueError(f"version must be a whole number, not {version!r}")
        if not isinstance(algorithm := top.get("algorithm"), str):
            raise ValueError(f"algorithm must be a string, not {algorithm!r}")
        features = _struct(top.get("features", []), _CLASSES, "features")
        compatible, read_only, incompatible = (_strings(features.get(name, []), name) for name in _CLASSES)
        formats = _formats(top["erofs_formats"]) if "erofs_formats" in top else None
        return cls(Algorithm.parse(algorithm), version, compatible, read_only, incompatible, formats)

    def check(self, path: str, algorithm: Algorithm | None) -> None:
        """Refuse what this version must not touch, in composefs-rs's order.

        Raises:
            MetadataError: a newer format version.
            AlgorithmMismatchError: not *algorithm*, if one is asked for.
            UnsupportedFeatureError: an incompatible feature.
        """
        if self.version > _MAX_VERSION:
            raise MetadataError(
                path,
                f"unsupported repository format version {self.version} (this tool supports up to {_MAX_VERSION})",
            )
        if algorithm not in (None, self.algorithm):
            assert algorithm is not None
            raise AlgorithmMismatchError(f"repository {path}", algorithm.text, self.algorithm.text)
        if unknown := tuple(name for name in self.incompatible if name not in _KNOWN_INCOMPATIBLE):
            raise UnsupportedFeatureError(path, unknown)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its duplicate keys still there."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _struct(value: Any, fields: tuple[str, ...], what: str) -> dict[str, Any]:
    """A JSON object, or an array of its values in order (serde accepts both); unknown keys are dropped."""
    if isinstance(value, _Pairs):
        known = [(key, item) for key, item in value if key in fields]
        if len({key for key, _ in known}) != len(known):
            raise ValueError(f"{what} has a key twice")
        return dict(known)
    if isinstance(value, list) and len(value) <= len(fields):
        return dict(zip(fields, value, strict=False))
    raise ValueError(f"{what} must be an object, not {value!r}")


def _strings(value: Any, what: str) -> tuple[str, ...]:
    if isinstance(value, _Pairs) or not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{what} must be a list of strings")
    return tuple(value)


def _formats(value: Any) -> ErofsFormats:
    table = _struct(value, ("default", "extra"), "erofs_formats")
    extra = table.get("extra", [])
    numbers = [table.get("default"), *(extra if isinstance(extra, list) and not isinstance(extra, _Pairs) else [None])]
    if not all(type(number) is int and number in (0, 1, 2) for number in numbers):
        raise ValueError(f"erofs_formats knows the versions 0, 1 and 2, not {numbers}")
    return ErofsFormats(numbers[0], tuple(numbers[1:]))
