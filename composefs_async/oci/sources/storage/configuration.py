"""Where the stores are: ``storage.conf`` with its drop-ins, the environment, and the usual places; blocks.

The rules are those of containers/storage since 2026 (pkg/configfile, types/options.go). They differ from the older
ones only where there are drop-ins, and for an ordinary user whose system's file names another root: that is tried,
too.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....errors import OciError, TransportError
from ..environment import variable
from .reference import StorageReference

__all__ = ["StorePlace", "store_places"]

_SYSTEM = ("/usr/share/containers", "/etc/containers")
_LIMIT = 1 << 20  # bytes of one file
_DRIVERS = ("overlay", "vfs")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A directory that may hold a store."""

    root: Path
    driver: str
    additional: bool = False
    """Only read by those who use it."""


@dataclass(slots=True)
class _Settings:
    root: str = ""
    driver: str = ""
    image_store: str = ""
    additional: list[str] = field(default_factory=list[str])


def store_places(reference: StorageReference) -> list[StorePlace]:
    """The stores in which an image is looked for, in this order; none has been looked at but for its driver.

    Raises:
        OciError: a file of the configuration cannot be understood.
        TransportError: CONTAINERS_STORAGE_CONF names a file that is not there.
    """
    settings = _Settings(reference.root or "", reference.driver or "")
    if reference.root is None:
        _read(settings)
    options = reference.options or tuple(filter(None, (variable("STORAGE_OPTS") or "").split(",")))
    if options:
        settings.image_store, settings.additional = "", []
        for option in options:
            key, _, value = option.partition("=")
            if key.removeprefix(f"{settings.driver}.").removeprefix("overlay.") == "imagestore":
                settings.image_store = value
            elif key.endswith("additionalimagestore"):
                settings.additional.append(value)
    driver = settings.driver or (variable("STORAGE_DRIVER") or "" if reference.root is None else "")
    roots = [*filter(None, [settings.image_store]), settings.root]
    places = [StorePlace(Path(root), driver or _driver(root)) for root in roots]
    return places + [StorePlace(Path(root), driver or _driver(root), True) for root in settings.additional]


def _driver(root: str) -> str:
    return next((each for each in _DRIVERS if Path(root, f"{each}-images").is_dir()), _DRIVERS[0])


def _read(settings: _Settings) -> None:
    rootless = os.geteuid() != 0 or variable("_CONTAINERS_ROOTLESS_UID") is not None
    merged: dict[str, Any] = {}
    for path in _files(rootless):
        _merge(merged, _load(path))
    storage = _table(merged, "storage")
    overlay = _table(_table(storage, "options"), "overlay")
    data = variable("XDG_DATA_HOME") or f"{_home()}/.local/share"
    usual = f"{data}/containers/storage" if rootless else "/var/lib/containers/storage"
    root = _text(storage, "rootless_storage_path") if rootless else ""
    root = _expanded(root or _text(storage, "graphroot") or usual)
    if rootless and not os.path.isdir(root):  # the older rules ignore the system's root
        root = usual
    settings.root = os.path.realpath(root)
    settings.driver = variable("STORAGE_DRIVER") or _text(storage, "driver")
    settings.image_store = _expanded(_text(storage, "imagestore") or _text(overlay, "imagestore"))
    stores = _table(storage, "options").get("additionalimagestores", [])
    if isinstance(stores, list):
        settings.additional = [_expanded(each) for each in stores if isinstance(each, str)]


def _files(rootless: bool) -> Iterator[Path]:
    only = variable("CONTAINERS_STORAGE_CONF")
    if only is not None:
        if not Path(only).is_file():
            raise TransportError(f"{only}, which CONTAINERS_STORAGE_CONF names, is missing")
        yield Path(only)
        return
    user = f"{variable('XDG_CONFIG_HOME') or f'{_home()}/.config'}/containers"
    mains = [Path(place, "storage.conf") for place in (user, *reversed(_SYSTEM))]
    yield from [path for path in mains if path.is_file()][:1]
    drop_ins: dict[str, Path] = {}
    kind = "rootless" if rootless else "rootful"
    for place in _SYSTEM:
        for below in ("storage.conf.d", f"storage.{kind}.conf.d", f"storage.{kind}.conf.d/{os.getuid()}"):
            drop_ins |= {path.name: path for path in Path(place, below).glob("*.conf") if path.is_file()}
    drop_ins |= {path.name: path for path in Path(user, "storage.conf.d").glob("*.conf") if path.is_file()}
    yield from (drop_ins[name] for name in sorted(drop_ins))
    override = variable("CONTAINERS_STORAGE_CONF_OVERRIDE")
    if override is not None:
        yield Path(override)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
        return tomllib.loads(raw.decode()) if len(raw) <= _LIMIT else {}
    except FileNotFoundError:
        raise TransportError(f"{path} is missing") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OciError(str(path), f"it is not valid TOML: {error}") from None


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(value, list):
            into[key] = _appended(old if isinstance(old, list) else [], value)
        else:
            into[key] = value


def _appended(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """Arrays replace, unless they have ``{append = true}`` among them."""
    rest = [value for value in new if not isinstance(value, dict)]
    appends = any(isinstance(value, dict) and value.get("append") is True for value in new)
    return [*old, *rest] if appends else rest


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _text(values: dict[str, Any], key: str) -> str:
    found = values.get(key)
    return found if isinstance(found, str) else ""


def _expanded(text: str) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return str(os.getuid()) if name == "UID" else variable(name) or ""

    return _VARIABLE.sub(value, text)


def _home() -> str:
    return variable("HOME") or os.path.expanduser("~")
