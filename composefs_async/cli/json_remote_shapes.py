"""Shapes of what ``--json`` prints, of commands that speak to registries and stores.

Owns the other half of the table in `json_shapes`, which has the language.
"""

from __future__ import annotations

from collections.abc import Mapping

from .json_shapes import Other, Shape, mapping, maybe

__all__ = ["REMOTE"]

_SENT: Shape = [{"digest": "digest", "size": "integer", "how": "string"}]
_PUSH: Shape = {
    "reference": "string",
    "manifest": "digest",
    "original": "digest",
    "dry_run": "boolean",
    "layers": _SENT,
}
_COPY: Shape = {
    "root": "string",
    "tag": "string",
    **dict.fromkeys(("objects_copied", "objects_present", "bytes_moved"), "integer"),
}
_OF_REPOSITORY: Shape = {
    "manifest": "digest",
    "config": "digest",
    "verity": "hex",
    "config_verity": "hex",
    "tagged": maybe("string"),
    "objects": {"copied": "integer", "shared": "integer", "present": "integer"},
    "size": "integer",
}
_BETWEEN_REGISTRIES: Shape = {
    "digest": "digest",
    "documents": ["digest"],
    "blobs": mapping("string"),
    "size": "integer",
    "dry_run": "boolean",
}
_EXPORTS: Shape = [
    {
        "name": "string",
        "destination": "string",
        "manifest_digest": "digest",
        "original_digest": "digest",
        "blobs_written": "integer",
        "blobs_present": "integer",
    }
]
_DESCRIPTOR: Shape = {
    "mediaType": "string",
    "digest": "digest",
    "size": "integer",
    "artifactType?": "string",
    "annotations?": mapping("string"),
}


REMOTE: Mapping[str, Shape] = {
    "oci push": _PUSH,
    "oci copy": Other(_OF_REPOSITORY, _PUSH, _BETWEEN_REGISTRIES, {"tags": mapping(_BETWEEN_REGISTRIES)}, _EXPORTS),
    "oci tags": {"Repository": "string", "Tags": ["string"]},
    "oci catalog": {"repositories": ["string"]},
    "oci manifest head": {
        "digest": "digest",
        "mediaType": "string",
        "size": maybe("integer"),
        "host": "string",
    },
    "oci referrers": [_DESCRIPTOR],
    "oci ratelimit": maybe(
        {
            "limit": maybe("integer"),
            "remaining": maybe("integer"),
            "window": maybe("integer"),
            "source": maybe("string"),
        }
    ),
    "oci ping": {"host": "string", "version": "string"},
    "publish": {
        "name": "string",
        "manifest_digest": "digest",
        "root": "string",
        "image_id": maybe("hex"),
        **dict.fromkeys(("objects_sent", "objects_shared", "bytes_sent", "requests"), "integer"),
        "unchanged": "boolean",
    },
    "fetch": Other(
        {
            "name": "string",
            "manifest_digest": "digest",
            "root": "string",
            "image_id": maybe("hex"),
            "tag": "string",
            **dict.fromkeys(("objects_fetched", "objects_present", "bytes_received", "requests"), "integer"),
            "failed_sources": mapping("string"),
        },
        _COPY,
    ),
    "copy": _COPY,
    "store init": {
        "id": "string",
        "algorithm": "string",
        "grace": "integer",
        "cas": "string",
        "created": "boolean",
    },
    "store ls": [{"name": "string", "manifest": "digest", "created": "string", "size": "integer"}],
    "store du": {
        "refs": [{"name": "string", "exclusive": "integer", "shared": "integer"}],
        "size": "integer",
        "blobs": "integer",
    },
    "store fsck": {
        **dict.fromkeys(("names", "blobs", "members", "bytes"), "integer"),
        "ok": "boolean",
        "findings": [{"kind": "string", "key": "string", "detail": "string", "names": ["string"]}],
    },
    "store gc": {
        **dict.fromkeys(("live_blobs", "young_blobs", "condemned_blobs", "deleted_blobs"), "integer"),
        **dict.fromkeys(("live_bytes", "condemned_bytes", "deleted_bytes"), "integer"),
        "dry_run": "boolean",
    },
    "store table": [
        {
            "key": "string",
            "kind": "string",
            "size": "integer",
            "stored": "integer",
            "coding": "string",
            "offset": "integer",
            "blob": "digest",
        }
    ],
    "store mirror": dict.fromkeys(("names", "blobs", "bytes", "removed"), "integer"),
    "fleet convert": [
        {
            "reference": "string",
            "image_id": maybe("hex"),
            "error": maybe("string"),
            "layers_converted": "integer",
            "layers_shared": "integer",
        }
    ],
    "fleet status": [{"reference": "string", "name": "string", "manifest": maybe("digest")}],
}
"""By command."""
