"""Check all layers of a containers-storage store: each is put together again, and compared with its diff_id.

Nothing is written to the store; its lock is held for one layer at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ....errors import ComposefsError, ImageNotFoundError, TransportError
from ...limits import Limits
from .configuration import store_places
from .files import LayerFiles, LayerReader
from .layers import StoredLayer, damaged_names, recipe_of
from .recipe import SparseLayerError, read_recipe
from .records import LayerRecord, Store, layer_directory
from .reference import parse_reference

__all__ = ["CheckedLayer", "check_storage"]

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


def check_storage(root: str | None = None, limits: Limits | None = None) -> list[CheckedLayer]:
    """Check every layer of the store at *root*, or of that of the configuration; blocks, reads all of the store.

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
    known = dict(own)
    for store in stores[1:]:
        if store.exists:
            with store.locked("layers"):
                known = store.layers() | known
    return [_checked(layer, known, stores, limits or Limits()) for layer in own.values()]


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
