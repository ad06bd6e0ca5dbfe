"""``registries.conf``: which hosts stand for a registry, and whether they need TLS (containers-registries.conf(5)).

Owns finding, merging and understanding the files, and rewriting a reference by them.  Reads files; blocks.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RegistryError, TransportError
from .access import Surroundings
from .reference import Reference

__all__ = ["Location", "RegistriesConf", "load_registries_conf", "parse_registries_conf"]

_PULL_FROM = ("all", "digest-only", "tag-only")
_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class _Place:
    """A location in a file."""

    location: str
    insecure: bool
    pull_from: str = "all"


@dataclass(frozen=True, slots=True)
class _Registry:
    """A table ``[[registry]]``."""

    prefix: str
    primary: _Place
    mirrors: tuple[_Place, ...]
    blocked: bool
    digest_only: bool
    file: str

    def matches(self, name: str) -> int:
        """How many characters of the prefix fit *name*, a reference without transport; 0 if it does not fit."""
        if self.prefix.startswith("*."):
            host = name.partition("/")[0]
            return len(self.prefix) if host.partition(":")[0].endswith(self.prefix[1:]) else 0
        if not name.startswith(self.prefix):
            return 0
        rest = name[len(self.prefix) :]
        return len(self.prefix) if not rest or rest[0] in "/:@" else 0


@dataclass(frozen=True, slots=True)
class Location:
    """A place where a repository may be had."""

    host: str
    """With the port, if there is one."""
    path: str
    insecure: bool = False
    """Certificates need not be valid, and HTTP without TLS is allowed."""
    mirror: bool = False

    @property
    def name(self) -> str:
        """Host and path, as a reference begins."""
        return f"{self.host}/{self.path}"


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """What all files say together."""

    registries: tuple[_Registry, ...] = ()
    credential_helpers: tuple[str, ...] | None = None
    """In the order of the file; None if no file has them."""
    files: tuple[str, ...] = field(default=(), compare=False)

    def locations(self, reference: Reference, *, push: bool = False) -> list[Location]:
        """Where *reference* may be had, in the order to try: mirrors first.  Pushing uses no mirrors.

        Raises:
            RegistryError: the configuration blocks it.
        """
        name = reference.canonical
        found = max(self.registries, key=lambda registry: registry.matches(name), default=None)
        if found is None or not found.matches(name):
            return [Location(reference.domain, reference.path)]
        if found.blocked:
            raise RegistryError(str(reference), 0, "BLOCKED", message=f"{found.file} blocks {found.prefix}")
        wildcard = found.prefix.startswith("*.")
        rest = "" if wildcard else reference.name[len(found.prefix) :]
        mirrors = [] if push else [mirror for mirror in found.mirrors if _fits(mirror, found, reference)]
        places = [(mirror, True) for mirror in mirrors] + [(found.primary, False)]
        return [
            _located(reference.name if (wildcard and not mirror) or not place.location else place.location + rest,
                     place.insecure, mirror)
            for place, mirror in places
        ]  # fmt: skip

    def is_insecure(self, host: str) -> bool:
        """Whether *host* alone, without a repository, is configured to be insecure."""
        return any(registry.primary.insecure for registry in self.registries if registry.prefix == host)


def _located(name: str, insecure: bool, mirror: bool) -> Location:
    host, _, path = name.partition("/")
    return Location(host, path, insecure, mirror)


def _fits(mirror: _Place, registry: _Registry, reference: Reference) -> bool:
    wanted = "digest-only" if registry.digest_only else mirror.pull_from
    by_digest = reference.digest is not None
    return wanted == "all" or (wanted == "digest-only") == by_digest


# -- files -------------------------------------------------------------------------------------


def load_registries_conf(around: Surroundings, file: Path | None = None) -> RegistriesConf:
    """Read the files that podman would read; *file* replaces them all.

    Raises:
        TransportError: a file cannot be read or understood.
    """
    tables = [(str(path), _read(path)) for path in _files(around, file)]
    return _merge(tables)


def parse_registries_conf(text: str, file: str = "registries.conf") -> RegistriesConf:
    """Understand the text of one file."""
    return _merge([(file, _parse(text, file))])


def _files(around: Surroundings, file: Path | None) -> Iterator[Path]:
    given = file or (Path(found) if (found := around.get("CONTAINERS_REGISTRIES_CONF")) else None)
    if given is not None:
        yield given
    else:
        mains = (directory / "registries.conf" for directory in around.containers_directories())
        main = next((path for path in mains if path.exists()), None)
        if main is not None:
            yield main
        yield from _drop_ins(around)
    if override := around.get("CONTAINERS_REGISTRIES_CONF_OVERRIDE"):
        yield Path(override)


def _drop_ins(around: Surroundings) -> list[Path]:
    found: dict[str, Path] = {}
    for directory in _drop_in_directories(around):
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if name.endswith(".conf"):
                found.setdefault(name, directory / name)
    return [found[name] for name in sorted(found)]


def _drop_in_directories(around: Surroundings) -> Iterator[Path]:
    user, *system = around.containers_directories()
    yield user / "registries.conf.d"
    for base in system:
        if around.uid == 0:
            yield base / "registries.rootful.conf.d"
        else:
            yield base / "registries.rootless.conf.d" / str(around.uid)
            yield base / "registries.rootless.conf.d"
        yield base / "registries.conf.d"


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}") from None
    if len(content) > _LIMIT:
        raise TransportError(f"{path} is larger than {_LIMIT} bytes")
    try:
        return _parse(content.decode(), str(path))
    except UnicodeDecodeError:
        raise TransportError(f"{path} is not UTF-8") from None


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TransportError(f"{file} is not valid TOML: {error}") from None
    if isinstance(table.get("registries"), Mapping):
        raise TransportError(f"{file} must be in the format of version 2: it has [registries.…]")
    return table


def _merge(tables: list[tuple[str, dict[str, Any]]]) -> RegistriesConf:
    registries: dict[str, _Registry] = {}
    helpers: tuple[str, ...] | None = None
    for file, table in tables:
        if "credential-helpers" in table:
            helpers = tuple(_text_list(file, table, "credential-helpers"))
        here: dict[str, _Registry] = {}
        for entry in _tables(file, table, "registry"):
            registry = _registry(file, entry)
            _refuse_conflicts(file, registry, here)
            here.setdefault(registry.prefix, registry)
        registries.update(here)
    return RegistriesConf(tuple(registries.values()), helpers, tuple(file for file, _ in tables))


def _refuse_conflicts(file: str, registry: _Registry, others: Mapping[str, _Registry]) -> None:
    for other in others.values():
        same = other.primary.location == registry.primary.location != ""
        if same and (other.primary.insecure, other.blocked) != (registry.primary.insecure, registry.blocked):
            raise TransportError(f"{file}: insecure or blocked is said differently for {registry.primary.location}")


def _registry(file: str, entry: Mapping[str, Any]) -> _Registry:
    prefix, location = _text(file, entry, "prefix"), _text(file, entry, "location")
    prefix = prefix or location
    if not prefix:
        raise TransportError(f"{file}: a [[registry]] has neither prefix nor location")
    if prefix.startswith("*."):
        if any(char in prefix[2:] for char in "/:@*"):
            raise TransportError(f"{file}: prefix {prefix!r}: after '*.' there is only the name of a domain")
    elif not location:
        raise TransportError(f"{file}: [[registry]] {prefix} has no location")
    if "pull-from-mirror" in entry:
        raise TransportError(f"{file}: [[registry]] {prefix}: pull-from-mirror belongs into [[registry.mirror]]")
    digest_only = _flag(file, entry, "mirror-by-digest-only")
    mirrors = tuple(_mirror(file, prefix, mirror, digest_only) for mirror in _tables(file, entry, "mirror"))
    for each in (prefix, location):
        _check_location(file, each)
    primary = _Place(location.rstrip("/"), _flag(file, entry, "insecure"))
    return _Registry(prefix.rstrip("/"), primary, mirrors, _flag(file, entry, "blocked"), digest_only, file)


def _mirror(file: str, prefix: str, entry: Mapping[str, Any], digest_only: bool) -> _Place:
    location, pull_from = _text(file, entry, "location"), _text(file, entry, "pull-from-mirror") or "all"
    if not location:
        raise TransportError(f"{file}: a mirror of {prefix} has no location")
    _check_location(file, location)
    if pull_from not in _PULL_FROM:
        raise TransportError(f"{file}: pull-from-mirror is {pull_from!r}, none of {', '.join(_PULL_FROM)}")
    if digest_only and "pull-from-mirror" in entry:
        raise TransportError(f"{file}: [[registry]] {prefix}: mirror-by-digest-only excludes pull-from-mirror")
    return _Place(location.rstrip("/"), _flag(file, entry, "insecure"), pull_from)


def _check_location(file: str, location: str) -> None:
    if "://" in location:
        raise TransportError(f"{file}: {location!r} must have no scheme")


def _text(file: str, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise TransportError(f"{file}: {key} is not a string")
    return value


def _flag(file: str, table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise TransportError(f"{file}: {key} is neither true nor false")
    return value


def _text_list(file: str, table: Mapping[str, Any], key: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TransportError(f"{file}: {key} is not a list of strings")
    return value


def _tables(file: str, table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise TransportError(f"{file}: {key} is not a list of tables")
    return value
