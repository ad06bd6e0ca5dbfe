"""What must be true of objects that arrived before anything gets a name.

Owns comparing the content of streams with the digests in their names, and images with what their layers make.  Blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

from .. import fsverity
from .._maintenance.fsck.chunks import Status, merge
from .._maintenance.fsck.object_reader import Failure, load_large
from .._maintenance.repair.stream_names import NAME
from .._repo import streams
from .._repo.publish import object_of
from .._repo.state import RepoState
from ..digest import ObjectId
from ..erofs.writer import image_pieces
from ..errors import DigestMismatchError, FormatError, IntegrityError, OciError
from ..naming import IMAGE_REF, IMAGE_REFS, IMAGE_V1_REF, config_ref
from ..oci.documents import parse_config, parse_manifest
from ..oci.filesystem import XattrFilter
from ..oci.importing.incremental_tree import tree_of_layers
from ..oci.jsondoc import DOCUMENT_LIMIT
from .closure import Walked

__all__ = ["prove_images", "prove_stream", "unproven"]

_BUFFER = 4 << 20
_VERSIONS = {IMAGE_V1_REF: (1, 0), IMAGE_REF: (2,)}


def unproven(state: RepoState, walked: Walked) -> list[str]:
    """Names of streams that the repository does not have for the same objects already."""
    return [name for name, found in walked.streams.items() if object_of(state, "streams", name) != found]


def prove_stream(state: RepoState, name: str, object_id: ObjectId, check: Callable[[], object]) -> None:
    """Compare the content of a stream with the digest in its name, and every object in it with its id.

    Raises:
        DigestMismatchError
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise FormatError(f"stream {name} has no digest in its name")
    found = _content_digest(state, object_id, match[2], check)
    if found != match[3]:
        raise DigestMismatchError(f"stream {name}", f"{match[2]}:{match[3]}", f"{match[2]}:{found}")


def _content_digest(state: RepoState, object_id: ObjectId, algorithm: str, check: Callable[[], object]) -> str:
    hasher = hashlib.new(algorithm)
    with streams.open_stream(state, "", object_id) as reader:
        table, used = bytes(reader.object_refs), bytearray(len(reader.object_refs))
        buffer, rest, left, offset = bytearray(_BUFFER), b"", 0, 0
        for piece in reader.unpacked():
            chunks, at, status = rest + piece, 0, Status.FULL
            while status is not Status.END:
                check()
                merged = merge(state, table, used, chunks, at, left, buffer)
                hasher.update(memoryview(buffer)[: merged.size])
                if merged.status is Status.INVALID:
                    raise reader.bad_chunk(merged.value, offset + merged.at)
                for failure in merged.failures:
                    _refuse(reader.object_refs[failure.at], failure)
                if merged.status is Status.LARGE:
                    large = reader.object_refs[merged.value]
                    if later := load_large(state, large, hasher.update):
                        _refuse(large, later)
                status, at, left = merged.status, merged.at, merged.left
            rest = chunks[at:]
            offset += at
        if left or rest:
            raise reader.cut_short(left, offset)
    return hasher.hexdigest()


def _refuse(object_id: ObjectId, failure: Failure) -> None:
    if failure.step != "large":
        found = failure.digest.hex() or f"nothing that can be read ({failure.step})"
        raise DigestMismatchError(f"object {object_id.hex()}", object_id.hex(), found)


# -- images ------------------------------------------------------------------------------------


def prove_images(state: RepoState, walked: Walked, expected: ObjectId | None) -> None:
    """Compare the EROFS images of an OCI image with the one that is *expected*, and with what the layers make.

    The documents and layers have been proven before.  With an expected image alone nothing is built; otherwise the tree
    of the layers is, which takes about 5 µs an entry.

    Raises:
        DigestMismatchError: an image is another one.
        IntegrityError: it cannot be told, because the image is one for booting.
    """
    images = _image_refs(state, walked)
    if expected is not None and expected not in images.values():
        found = ", ".join(sorted(each.hex() for each in images.values())) or "none"
        raise DigestMismatchError(f"the image of {walked.root}", expected.hex(), found)
    if expected is not None and set(images.values()) == {expected}:
        return
    made = _made(state, walked, images)
    for reference, image_id in images.items():
        if image_id == expected and reference not in made:
            continue  # one for booting, which the caller vouches for
        if reference not in made:
            raise IntegrityError(
                f"{walked.root} has the image {image_id.hex()} for booting, which only an id that is expected proves"
            )
        if image_id not in made[reference]:
            raise DigestMismatchError(f"the image of {walked.root}", made[reference][0].hex(), image_id.hex())


def _made(state: RepoState, walked: Walked, images: Mapping[str, ObjectId]) -> dict[str, list[ObjectId]]:
    """The ids that images of the layers have, by the name of the reference; first the one that we would make."""
    versions = {reference: found for reference, found in _VERSIONS.items() if reference in images}
    if not versions:
        return {}
    tree = tree_of_layers(state, _layers(state, walked), XattrFilter.ALLOWLIST_ONLY)
    return {
        reference: [_digest(image_pieces(tree, state.algorithm, version), state) for version in found]
        for reference, found in versions.items()
    }


def _digest(pieces: Iterable[bytes], state: RepoState) -> ObjectId:
    hasher = fsverity.Hasher(state.algorithm)
    for piece in pieces:
        hasher.update(piece)
    return hasher.id()


def _image_refs(state: RepoState, walked: Walked) -> dict[str, ObjectId]:
    found: dict[str, ObjectId] = {}
    for name, object_id in walked.streams.items():
        if name.startswith("oci-config-"):
            with streams.open_stream(state, name, object_id) as reader:
                refs: Mapping[str, ObjectId] = reader.named_refs
                found.update((key, refs[key]) for key in refs if key in IMAGE_REFS)
    return found


def _layers(state: RepoState, walked: Walked) -> list[tuple[str, ObjectId]]:
    """The layers of the root, as its manifest and config have them."""
    digest = walked.root.removeprefix("oci-manifest-")
    manifest = parse_manifest(_payload(state, walked.root_id), digest)
    with streams.open_stream(state, walked.root, walked.root_id) as reader:
        config_id = dict(reader.named_refs).get(config_ref(manifest.config.digest))
    if config_id is None:
        raise OciError(f"manifest {digest}", "its stream does not refer to its config")
    config = parse_config(_payload(state, config_id), manifest.config.digest)
    with streams.open_stream(state, "", config_id) as reader:
        refs = dict(reader.named_refs)
    if missing := [diff_id for diff_id in config.diff_ids if diff_id not in refs]:
        raise OciError(f"config {manifest.config.digest}", f"its stream does not refer to the layer {missing[0]}")
    return [(diff_id, refs[diff_id]) for diff_id in config.diff_ids]


def _payload(state: RepoState, stream_id: ObjectId) -> bytes:
    content = bytearray()
    for piece in streams.merge_splitstream(state, "", stream_id):
        content += piece
        if len(content) > DOCUMENT_LIMIT:
            raise OciError("a document", f"it has more than {DOCUMENT_LIMIT} bytes")
    return bytes(content)
