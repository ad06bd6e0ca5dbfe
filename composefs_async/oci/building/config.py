"""The documents of an image that is made here; no I/O.

Fields stand in the order of OCI's image specification, and JSON is compact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ...digest import sha256_content_digest
from ...errors import OciError
from ..documents import OCI_LAYER_TYPE, OCI_MANIFEST_TYPE
from ..platforms import Platform

__all__ = ["ConfigSettings", "changed_config", "documents", "plain_descriptor", "timestamp"]

_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_ORDER = (
    "created",
    "author",
    "architecture",
    "variant",
    "os",
    "os.version",
    "os.features",
    "config",
    "rootfs",
    "history",
)
_CONFIG_ORDER = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
)


@dataclass(slots=True)
class ConfigSettings:
    """What the config says of running the image; None leaves what the base has."""

    entrypoint: Sequence[str] | None = None
    cmd: Sequence[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    exposed: Sequence[str] = ()
    """Ports, such as ``80/tcp``."""
    volumes: Sequence[str] = ()
    stop_signal: str | None = None
    author: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further members of the config object itself, as they are."""


def timestamp(seconds: int) -> str:
    """RFC 3339, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise OciError("created", f"{seconds} is no time") from None


def changed_config(document: Mapping[str, Any], settings: ConfigSettings) -> dict[str, Any]:
    """A config with *settings* applied; a new entrypoint drops the command of the base, unless one is given."""
    config: dict[str, Any] = dict(document.get("config") or {})
    if settings.entrypoint is not None:
        config["Entrypoint"] = list(settings.entrypoint)
        config.pop("Cmd", None)
    if settings.cmd is not None:
        config["Cmd"] = list(settings.cmd)
    if settings.env:
        config["Env"] = _env(config.get("Env") or [], settings.env)
    if settings.labels:
        config["Labels"] = dict(sorted({**(config.get("Labels") or {}), **settings.labels}.items()))
    single = {"User": settings.user, "WorkingDir": settings.workdir, "StopSignal": settings.stop_signal}
    config |= {key: value for key, value in single.items() if value is not None}
    for key, names in (("ExposedPorts", settings.exposed), ("Volumes", settings.volumes)):
        if names:
            config[key] = {name: {} for name in sorted({*(config.get(key) or {}), *names})}
    config |= settings.raw
    changed = {**document, "config": _ordered(config, _CONFIG_ORDER)}
    if settings.author is not None:
        changed["author"] = settings.author
    return changed


def _env(old: Sequence[str], new: Mapping[str, str]) -> list[str]:
    values = dict(entry.partition("=")[::2] for entry in old)
    values |= new
    for name in values:
        if not name or "=" in name or "\0" in name:
            raise OciError("config", f"{name!r} is no name of a variable")
    return [f"{name}={value}" for name, value in values.items()]


def _ordered(values: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    known = {key: values[key] for key in order if key in values}
    return known | {key: values[key] for key in sorted(values) if key not in known}


def documents(
    base: Mapping[str, Any],
    platform: Platform,
    created: str,
    layers: Sequence[tuple[Mapping[str, Any], str, str | None]],
    annotations: Mapping[str, str],
) -> tuple[bytes, bytes]:
    """Manifest and config.

    Args:
        base: the config as far as it is known: settings, and the history of a base.
        created: in the form of `timestamp`.
        layers: descriptor, diff_id and, for a layer that is made here, what the history says of it.
        annotations: of the manifest.
    """
    history = [*(base.get("history") or [])]
    history += [{"created": created, "created_by": by} for _, _, by in layers if by is not None]
    config: dict[str, Any] = {**base, "created": created, "architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        config["variant"] = platform.variant
    config["rootfs"] = {"type": "layers", "diff_ids": [diff_id for _, diff_id, _ in layers]}
    config["history"] = history
    config_raw = _compact(_ordered(config, _ORDER))
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST_TYPE,
        "config": {"mediaType": _OCI_CONFIG, "digest": sha256_content_digest(config_raw), "size": len(config_raw)},
        "layers": [dict(descriptor) for descriptor, _, _ in layers],
    }
    if annotations:
        manifest["annotations"] = dict(sorted(annotations.items()))
    return _compact(manifest), config_raw


def plain_descriptor(diff_id: str, size: int) -> dict[str, Any]:
    """The descriptor of a layer that is not packed."""
    return {"mediaType": OCI_LAYER_TYPE, "digest": diff_id, "size": size}


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
