"""Check a containers-storage store: layers, each put together again and compared with its diff_id, and images.

Nothing is written to the store; its lock is held for one layer, or one image, at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ....errors import ComposefsError, ImageNotFoundError, TransportError
from ...documents import parse_config, parse_manifest, verify_content
from ...jsondoc import parse_json
from ...limits import Limits
from .configuration import store_places
from .files import LayerFiles, LayerReader
from .layers import StoredLayer, damaged_names, recipe_of
from .recipe import SparseLayerError, read_recipe
from .records import ImageRecord, LayerRecord, Store, layer_directory
from .reference import parse_reference

__all__ = ["CheckedImage", "CheckedLayer", "CheckedStorage", "check_storage"]

_PIECE = 512 << 10


@dataclass(frozen=True, slots=True)
class CheckedLayer:
    """What was found of one layer of a store."""

    id: str
    diff_id: str | None
    """None for the layers of containers, which are not checked: nothing says what they should be."""
    problem: str | None = None
    """What is damaged, in a sentence; None if nothing is known to be."""
    unchecked: str | None = None
    """Why it could not be checked, which says nothing about damage; None if it was."""
    files: tuple[str, ...] = ()
    """Names of the files that differ from what was unpacked."""


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """What was found of one image of a store."""

    id: str
    names: tuple[str, ...]
    problem: str | None = None
    """What is damaged of its manifests and its config, or which layers are missing or wrong; None if nothing is."""
    unchecked: str | None = None
    """Why it could not be checked as a whole; None if it was."""
    damaged_layers: tuple[str, ...] = ()
    """The ids of its layers that are damaged."""

    @property
    def good(self) -> bool:
        """Whether nothing of it is known to be damaged."""
        return self.problem is None and not self.damaged_layers


@dataclass(frozen=True, slots=True)
class CheckedStorage:
    """What was found in one store."""

    layers: tuple[CheckedLayer, ...]
    images: tuple[CheckedImage, ...]


def check_storage(root: str | None = None, limits: Limits | None = None) -> CheckedStorage:
    """Check the layers and images of the store at *root*, or of that of the configuration.

    Blocks for a read of all of the store.

    Raises:
        ImageNotFoundError: there is no store.
        InvalidNameError: *root* is no absolute path.
        OciError, TransportError: the configuration or the store's records cannot be read, or its lock
            is held by somebody else.
    """
    where = f"[{root}]" if root else ""
    reference = parse_reference(f"containers-storage:{where}any")
    stores = [Store(place) for place in store_places(reference)]
    if not stores[0].exists:
        raise ImageNotFoundError(str(stores[0].root), reason="there is no store")
    with stores[0].locked("layers"):
        own = stores[0].layers()
    with stores[0].locked("images"):
        records = stores[0].images()
    known, chosen = dict(own), limits or Limits()
    for store in stores[1:]:
        if store.exists:
            with store.locked("layers"):
                known = store.layers() | known
    layers = tuple(_checked(layer, known, stores, chosen) for layer in own.values())
    damaged = {layer.id for layer in layers if layer.problem is not None}
    return CheckedStorage(layers, tuple(_checked_image(record, known, damaged, chosen) for record in records))


def _checked_image(
    record: ImageRecord, known: dict[str, LayerRecord], damaged: set[str], limits: Limits
) -> CheckedImage:
    chain: list[str] = []
    layer = record.layer
    while layer is not None and layer in known and layer not in chain:
        chain.insert(0, layer)
        layer = known[layer].parent
    hurt = tuple(each for each in chain if each in damaged)
    result = CheckedImage(record.id, record.names, damaged_layers=hurt)
    try:
        with record.store.locked("images"):
            diff_ids = _documents(record, limits)
    except OSError as error:
        return replace(result, unchecked=str(error))
    except ComposefsError as error:
        return replace(result, problem=str(error))
    if layer in chain:
        return replace(result, problem=f"its layer {layer} is above itself")
    if layer is not None:
        return replace(result, unchecked=f"its layer {layer} is in no store that the configuration names")
    if diff_ids is not None and record.layer is not None:
        found = [known[each].diff_id for each in chain]
        if found != list(diff_ids):
            return replace(result, problem=f"its config has {len(diff_ids)} layers, and the store {len(found)} others")
    return result


def _documents(record: ImageRecord, limits: Limits) -> tuple[str, ...] | None:
    """Compare all documents of an image with their digests; returns the diff_ids of its config.

    None is for an image that is an index or an artifact.
    """
    diff_ids = None
    for key, noted in record.documents.items():
        if noted.startswith("sha256:") and key != "signatures":
            verify_content(f"document {key}", record.store.big_data(record, key, limits.document_size), noted)
    for digest, key in record.manifests.items():
        raw = record.store.big_data(record, key, limits.document_size)
        verify_content(f"manifest {digest}", raw, digest)
        if "manifests" in parse_json(raw, f"manifest {digest}", limit=limits.document_size).members:
            continue
        manifest = parse_manifest(raw, digest, limit=limits.document_size)
        config = record.store.big_data(record, manifest.config.digest, limits.document_size)
        verify_content(f"config {manifest.config.digest}", config, manifest.config.digest)
        if manifest.is_container:
            diff_ids = parse_config(config, manifest.config.digest, limit=limits.document_size).diff_ids
    return diff_ids


def _checked(
    record: LayerRecord, known: dict[str, LayerRecord], stores: Sequence[Store], limits: Limits
) -> CheckedLayer:
    result = CheckedLayer(record.id, record.diff_id)
    if record.diff_id is None:
        return result
    chain, seen = [record], {record.id}
    while record.store.driver != "vfs" and (parent := chain[-1].parent) is not None:
        if parent in seen:
            return replace(result, problem=f"its layer below, {parent}, is above itself")
        if parent not in known:
            return replace(result, unchecked=f"its layer below, {parent}, is in no store that the configuration names")
        seen.add(parent)
        chain.append(known[parent])
    roots = tuple(layer_directory(each, stores) for each in chain)
    recipe = record.store.recipe(record.id)
    layer = StoredLayer(record.diff_id, recipe, roots, partial(record.store.locked, "layers"))
    try:
        with record.store.locked("layers"):
            return _compared(result, layer, limits)
    except (OSError, TransportError, SparseLayerError) as error:
        # Files that are missing or of another kind are damage, and have an error of their own.
        return replace(result, unchecked=str(error))


def _compared(result: CheckedLayer, layer: StoredLayer, limits: Limits) -> CheckedLayer:
    try:
        found = _digest(layer, limits)
        if found == layer.diff_id:
            return result
        problem = f"its content is {found}, but its diff_id is {layer.diff_id}"
    except (TransportError, SparseLayerError):
        raise
    except ComposefsError as error:
        problem = str(error)
    try:
        names = damaged_names(layer, limits)
    except (ComposefsError, OSError):
        names = []  # the first error has said what cannot be read
    return replace(result, problem=problem, files=tuple(name.decode("utf-8", "backslashreplace") for name in names))


def _digest(layer: StoredLayer, limits: Limits) -> str:
    """The digest of a layer's tar."""
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    files = LayerFiles(layer.name, layer.roots)
    try:
        with recipe_of(layer) as blob:
            reader = LayerReader(read_recipe(blob, layer.name, limits), files)
            try:
                while filled := reader.readinto(buffer):
                    hasher.update(buffer[:filled])
            finally:
                reader.close()
    finally:
        files.close()
    return f"sha256:{hasher.hexdigest()}"
