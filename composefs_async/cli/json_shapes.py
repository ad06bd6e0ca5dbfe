"""Shapes of what ``--json`` prints, of commands that work on the repository and on files.

Owns the language of shapes, and one half of the table; the other half is `json_remote_shapes`.  Does not own what is
made of them (`json_schemas`).

A shape is a type's name, a list with the shape of its elements, or a dict with the shapes of its members; a key that
ends in ``?`` may be missing.  Of text, ``digest`` is one of OCI with its algorithm, and ``hex`` the id of an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["REPOSITORY", "Other", "Shape", "mapping", "maybe"]

Shape: TypeAlias = "str | list[Shape] | dict[str, Shape] | Other"


class Other:
    """A shape that is no plain one: what a value may be instead, or the values under keys that are not known before."""

    def __init__(self, *choices: Shape, values: Shape | None = None) -> None:
        self.choices: tuple[Shape, ...] = choices
        self.values: Shape | None = values


def maybe(shape: Shape) -> Other:
    """Return the shape of a value that may be null."""
    return Other(shape, "null")


def mapping(values: Shape) -> Other:
    """Return the shape of an object whose keys are names of other things."""
    return Other(values=values)


_STATS: Shape = {
    **dict.fromkeys(("objects_stored", "objects_present", "objects_replaced"), "integer"),
    **dict.fromkeys(("bytes_stored", "bytes_present", "bytes_inline"), "integer"),
    **dict.fromkeys(("layers_imported", "layers_present", "bytes_read"), "integer"),
    **dict.fromkeys(("objects_reflinked", "bytes_reflinked"), "integer"),
    "seconds": mapping("number"),
}
_FINDING: dict[str, Shape] = {
    "type": "string",
    "path": "string",
    **dict.fromkeys(("object_id?", "name?", "digest?", "expected?", "measured?", "detail?", "cause?"), "string"),
    "unread?": "boolean",
    "notice?": "boolean",
}
_FSCK: dict[str, Shape] = {
    "ok": "boolean",
    "has_metadata": "boolean",
    **dict.fromkeys(("objects_checked", "objects_corrupted", "streams_checked", "streams_corrupted"), "integer"),
    **dict.fromkeys(("images_checked", "images_corrupted", "broken_links", "missing_objects"), "integer"),
    "errors": ["string"],
    "findings": [_FINDING],
}
_FORGOTTEN: Shape = {"tags": ["string"], "references": ["string"], "streams": "integer", "images": "integer"}
_REFERENCE: Shape = {
    "category": "string",
    "name": "string",
    "target": "string",
    "dangling": "boolean",
    "tag": maybe("string"),
}
_OBJECTS: dict[str, Shape] = {"objects": "integer", "size": "integer"}
_SPACE: Shape = {**_OBJECTS, "disk": "integer"}
_VALUE = Other("integer", "string", "null")
_CHANGE: Shape = {
    "path": "string",
    "kind": "string",
    "fields": [{"name": "string", "before": _VALUE, "after": _VALUE}],
    "size_before": maybe("integer"),
    "size_after": maybe("integer"),
}
_BOOT_EXPLANATION: Shape = {
    "variant": maybe("string"),
    "differences": ["string"],
    "first": maybe(_CHANGE),
    "specification": maybe({"file": "string", "line": "integer", "regex": "string"}),
    "attempts": "integer",
}
_MADE: Shape = {"manifest": "digest", "config": "digest", "tagged": "string"}

REPOSITORY: Mapping[str, Shape] = {
    "init": {
        "path": "string",
        "created": "boolean",
        "algorithm": "string",
        "verity": "boolean",
        "upgraded?": "boolean",
        "forgotten?": _FORGOTTEN,
    },
    "init --dry-run": {"path": "string", "dry_run": "boolean", "forgotten": _FORGOTTEN},
    "doctor": {
        "filesystem": {
            "path": "string",
            "kind": "string",
            **dict.fromkeys(("writable", "read_only", "proc", "tmpfile", "verity", "reflink"), "boolean"),
            **dict.fromkeys(("erofs", "overlay", "overlay_verity"), "boolean"),
            "free_bytes": "integer",
            "free_inodes": "integer",
        },
        "rootless": dict.fromkeys(("user_namespaces", "ids", "tmpfs_xattrs", "userxattr_data", "fuse"), "boolean"),
        "native": {"backend": "string", "implementations": mapping(["string"])},
        "versions": mapping("string"),
        "cpus": maybe("integer"),
        "links": [{"path": "string", "target": "string", "owner": "integer", "followed": "boolean"}],
    },
    "doctor --storage": {
        "layers": [
            {
                "id": "string",
                "diff_id": maybe("digest"),
                "problem": maybe("string"),
                "unchecked": maybe("string"),
                "files": ["string"],
            }
        ],
        "images": [
            {
                "id": "string",
                "names": ["string"],
                "problem": maybe("string"),
                "unchecked": maybe("string"),
                "damaged_layers": ["string"],
            }
        ],
        "damaged": "integer",
        "unchecked": "integer",
        "images_damaged": "integer",
    },
    "upgrade": {
        "path": "string",
        "upgraded": "boolean",
        "dry_run": "boolean",
        "algorithm": "string",
        "verity": "boolean",
        "erofs_versions": ["integer"],
        "streams": mapping("integer"),
        "hidden_images": "integer",
        "meta_json": maybe("string"),
    },
    "refs list": {"references": [_REFERENCE]},
    "refs prune": {"dry_run": "boolean", "pruned": [_REFERENCE]},
    "oci pull": {
        "manifest": "digest",
        "config": "digest",
        "verity": "hex",
        "tagged": "string",
        "image": maybe("hex"),
        "layers": [{"diff_id": "string", "verity": "hex"}],
        "stats": _STATS,
        "manifest_made?": "boolean",
        "boot_image?": "hex",
        "seals?": ["string"],
        "source?": "string",
        "fetched?": "integer",
        "resumed?": "integer",
        "partial?": "integer",
    },
    "oci images": {
        "images": [
            {
                "name": "string",
                "manifest_digest": "string",
                "is_container": "boolean",
                "architecture": "string",
                "os": "string",
                "created": maybe("string"),
                "layer_count": "integer",
                "referrer_count": "integer",
                "error?": "string",
                "without_manifest?": "boolean",
                "size?": "integer",
            }
        ]
    },
    "oci inspect": {
        "manifest": "string",
        "config": "string",
        "referrers": [{"digest": "digest"}],
        "composefs_erofs": maybe("hex"),
        "composefs_boot_erofs": maybe("hex"),
    },
    "oci layers": {
        "layers": [
            {
                "name": "string",
                "packed_size": "integer",
                "exclusive": _OBJECTS,
                "shared": _OBJECTS,
                "created_by": "string",
            }
        ]
    },
    "oci build": _MADE,
    "oci config": _MADE,
    "oci fsck": {
        "ok": "boolean",
        "images_checked": "integer",
        "images_corrupted": "integer",
        "errors": ["string"],
        "findings": [_FINDING],
        "repo": _FSCK,
    },
    "oci upgrade": {
        "images": [
            {"name": "string", "manifest_digest": "string", "outcome": "string", "error": maybe("string")},
        ],
        **dict.fromkeys(("current", "upgraded", "skipped", "failed"), "integer"),
    },
    "oci layer": {
        "diffId": "digest",
        "verity": "hex",
        "size": "integer",
        "entryCount": "integer",
        "splitstream": {"externalObjects": "integer", "externalSize": "integer", "inlineSize": "integer"},
    },
    "oci ls-layer": [
        {
            "path": "string",
            "type": "string",
            "mode": "string",
            "uid": "integer",
            "gid": "integer",
            "size": "integer",
            "mtime_ns": "integer",
            "link": maybe("string"),
            "object": maybe("hex"),
        }
    ],
    "oci import-layer": {"diff_id": "digest", "verity": "hex", "present": "boolean", "stats": _STATS},
    "oci seal": {"manifest": "digest", "artifact": maybe("digest"), "annotations": mapping("string")},
    "oci prepare-boot": {
        "image": "hex",
        "karg": "string",
        "reference": "string",
        "files": [{"path": "string", "size": "integer", "written": "boolean"}],
        "state": "string",
        "boot_digest": "string",
        "warnings": ["string"],
        "dry_run": "boolean",
    },
    "oci unprepare-boot": {"image": "hex", "removed": ["string"], "reference": "boolean", "dry_run": "boolean"},
    "diff": {"changes": [_CHANGE]},
    "explain": {
        "causes": maybe([{"name": "string", "summary": "string"}]),
        "applied_to_other": "boolean",
        "first": maybe(_CHANGE),
        "attempts": "integer",
        "untold": [{"name": "string", "lost": "string"}],
    },
    "explain --bootable": _BOOT_EXPLANATION,
    "images": {"images": [{"name": "string", "digest": "hex"}]},
    "boot check": {
        "ok": "boolean",
        "checks": [
            {
                "source": "string",
                "ok": "boolean",
                "kargs": ["string"],
                "image": maybe("hex"),
                "problems": ["string"],
                "notes": ["string"],
                "explanation": maybe(_BOOT_EXPLANATION),
            }
        ],
    },
    "boot labels": {
        "policy": "boolean",
        "files": [
            {
                "path": "string",
                "label": maybe("string"),
                "specification?": maybe("string"),
                "restorecon?": maybe("string"),
                "restorecon_specification?": maybe("string"),
            }
        ],
    },
    "gc": {
        "dry_run": "boolean",
        "objects_removed": "integer",
        "objects_bytes": "integer",
        "images_pruned": "integer",
        "streams_pruned": "integer",
        "pruned": ["string"],
        "leftovers": ["string"],
        "objects_leased": "integer",
        "mounted": ["string"],
        "objects_missing": "integer",
        "unknown_roots": ["string"],
        "quarantines": ["string"],
        "notes": [_FINDING],
        "blobs_released": "integer",
    },
    "fsck": _FSCK,
    "fsck --repair": {
        "ok": "boolean",
        "dry_run": "boolean",
        "actions": [{"path": "string", "action": "string", "source": "string"}],
        "unrepaired": [{"path": "string", "reason": "string", "remedy": "string", "unread": "boolean"}],
        "affected_refs": ["string"],
        "recovered_refs": ["string"],
        "problems": ["string"],
        "quarantine": maybe("string"),
        "before": _FSCK,
        "after": _FSCK,
    },
    "du": {
        "names": [
            {
                "name": "string",
                "kind": "string",
                "reference": "string",
                "target": "string",
                **dict.fromkeys(("exclusive", "shared", "frees"), _SPACE),
            }
        ],
        **dict.fromkeys(("all", "garbage", "leased", "leftovers", "quarantine"), _SPACE),
    },
    "leases": {
        "leases": [
            {
                "manifest_digest": maybe("digest"),
                "reference": "string",
                "started": "number",
                "expires": "number",
                "layers": mapping("hex"),
            }
        ]
    },
}
"""By command; an option behind it is one that changes what is printed."""
