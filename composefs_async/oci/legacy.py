"""Images that composefs-rs pulled in January 2026: config and layers are there, the manifest was never stored.

Owns finding them, the manifest that stands in for the lost one, and what becomes of their references.  That manifest
lists the layers as what is stored, uncompressed tars, so that it is true and always the same; but its digest is not
the one that the image was pulled by, which only pulling the image again brings back.

Their references stand directly below ``streams/refs`` and mostly dangle (`_repo.names.entry_of`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping

from .._repo import publish
from .._repo.state import RepoState
from ..digest import ObjectId, check_content_digest, sha256_content_digest
from ..errors import DigestMismatchError, FormatError, InvalidNameError, OciError
from ..naming import TAGS, config_stream, layer_stream
from ..repository import Repository
from ..splitstream import OCI_LAYER
from .documents import OCI_MANIFEST_TYPE, ImageConfig, Manifest, content_hasher, parse_manifest

__all__ = ["references", "remove_superseded", "stand_in_manifest", "verify_layers"]

_PREFIX = "oci-config-"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def references(repo: Repository) -> dict[str, str]:
    """The digest of the config by reference, sorted."""
    found = ((reference, _digest(stream)) for reference, stream in repo.named_streams())
    return {reference: digest for reference, digest in found if digest and not reference.startswith(f"{TAGS}/")}


def _digest(stream: str) -> str | None:
    with contextlib.suppress(FormatError):
        if stream.startswith(_PREFIX):
            return check_content_digest(stream.removeprefix(_PREFIX))
    return None


def stand_in_manifest(repo: Repository, config: ImageConfig, layers: Mapping[str, ObjectId]) -> Manifest:
    """A manifest for *config*, whose *layers* have the size that their streams claim (`verify_layers`)."""
    sizes = {}
    for diff_id, stream_id in layers.items():
        with repo.open_stream(layer_stream(diff_id), stream_id, OCI_LAYER) as reader:
            sizes[diff_id] = reader.stream_size
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST_TYPE,
        "config": _descriptor(_CONFIG_TYPE, config.digest, len(config.raw)),
        "layers": [_descriptor(_LAYER_TYPE, diff_id, sizes[diff_id]) for diff_id in config.diff_ids],
    }
    raw = json.dumps(document, separators=(",", ":")).encode()
    return parse_manifest(raw, sha256_content_digest(raw))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def verify_layers(repo: Repository, layers: Mapping[str, ObjectId], manifest: Manifest) -> None:
    """Compare the content of layers with what a stand-in *manifest* says of them.  Blocks; reads all of it.

    Raises:
        DigestMismatchError: a layer, or an object of it, is not what its name says.
        OciError: it has not the size that its stream claims.
    """
    sizes = {layer.digest: layer.size for layer in manifest.layers}
    for diff_id, stream_id in layers.items():
        hasher, size = content_hasher("layer", diff_id), 0
        for piece in repo.merge_splitstream(layer_stream(diff_id), stream_id, OCI_LAYER):
            hasher.update(piece)
            size += len(piece)
        found = f"{diff_id.partition(':')[0]}:{hasher.hexdigest()}"
        if found != diff_id:
            raise DigestMismatchError(f"layer {diff_id}", diff_id, found)
        if size != sizes[diff_id]:
            raise OciError(f"layer {diff_id}", f"it has {size} bytes, its stream claims {sizes[diff_id]}")


def remove_superseded(state: RepoState, tag: str, config_digest: str) -> bool:
    """Remove the reference of January that *tag*, which is in place, takes the place of, durably; False if none is.

    That is one of the same name, if it leads to the same config, or dangles and would stop composefs-rs's gc.
    """
    with contextlib.suppress(InvalidNameError):
        target = publish.target_of(state, f"streams/refs/{publish.check_reference(tag)}")
        if target is not None:
            means, says = publish.entry_of(state, "streams", target), os.path.basename(target)
            if means == config_stream(config_digest) or means != says:
                return publish.remove_reference(state, "streams", tag)
    return False
