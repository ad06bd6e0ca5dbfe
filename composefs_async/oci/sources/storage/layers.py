"""Layers of a store as blobs: put together again while they are read, under the store's lock; what is damaged is named.

Shared by containers-storage and Docker's own store, which keep layers in the same form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...._aio.hops import hop
from ...._aio.to_thread import in_checked_thread
from ....errors import DigestMismatchError, OciError
from ...limits import Limits
from ..base import BlockingBlob, LocalBlob
from .files import DamagedFileError, LayerFiles, LayerReader, damaged_files
from .recipe import read_recipe

__all__ = ["StoredLayer", "damaged_names", "opened_layer", "recipe_of"]

Check = Callable[[], object]


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """Where the parts of a layer are."""

    diff_id: str
    recipe: Path
    roots: tuple[Path, ...]
    """The layer's files, then those of the layers below it."""
    lock: Callable[[Check], AbstractContextManager[None]]
    """Keeps the layer from being removed."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"layer {self.diff_id}"


@contextmanager
def recipe_of(layer: StoredLayer) -> Iterator[LocalBlob]:
    """The tar-split of a layer, for the time of the block; blocks.

    Raises:
        OciError: it has none, so that it was not made of a tar.
    """
    try:
        file = layer.recipe.open("rb")
    except FileNotFoundError:
        raise OciError(
            layer.name, f"it was not made from a tar, or has been removed: {layer.recipe} is missing"
        ) from None
    with file:
        size = file.seek(0, 2)
        yield LocalBlob(file.fileno(), size, str(layer.recipe))


@asynccontextmanager
async def opened_layer(layer: StoredLayer, size: int, limits: Limits) -> AsyncIterator[BlockingBlob]:
    """The tar of a layer, for the time of the block.

    When the block ends because the tar has another digest, the files that differ are looked for, and named.

    Raises:
        OciError: it cannot be put together.
        TransportError: somebody else has had the lock for too long.
    """

    def opened(stack: ExitStack, check: Check) -> LayerReader:
        stack.enter_context(layer.lock(check))
        blob = stack.enter_context(recipe_of(layer))
        files = LayerFiles(layer.name, layer.roots)
        stack.callback(files.close)
        reader = LayerReader(read_recipe(blob, layer.name, limits), files)
        stack.callback(reader.close)
        return reader

    stack = ExitStack()
    try:
        reader = await in_checked_thread(lambda check: opened(stack, check))
        try:
            yield BlockingBlob(reader.readinto, size, unpacked=True, offer=reader.offer)
        except DigestMismatchError as error:
            names = await hop(damaged_names, layer, limits)
            if names:
                shown = ", ".join(name.decode("utf-8", "backslashreplace") for name in names)
                what = f"{layer.name}: not what was unpacked: {shown}; pull the image again, or from its registry"
                raise DigestMismatchError(what, error.expected, error.found) from error
            raise
        except DamagedFileError as error:
            error.add_note(f"the store's directory of that layer is {layer.roots[0]}")
            raise
    finally:
        stack.close()  # descriptors only, and also if this task has been cancelled


def damaged_names(layer: StoredLayer, limits: Limits) -> list[bytes]:
    """Return the names of the files of a layer that are not what was unpacked; blocks.  The lock is the caller's."""
    with recipe_of(layer) as blob:
        files = LayerFiles(layer.name, layer.roots)
        try:
            return damaged_files(read_recipe(blob, layer.name, limits), files)
        finally:
            files.close()
