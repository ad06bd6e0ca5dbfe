"""``containers-storage:NAME``: images in the storage of podman, buildah, skopeo and CRI-O, verified.

Owns finding an image, in several stores if need be, and its chain of layers. What a store says of a layer is compared
with the config, and the layer's content with its diff_id; nothing is believed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from ...._aio.hops import hop
from ...._aio.to_thread import in_checked_thread
from ....digest import sha256_content_digest
from ....errors import ImageNotFoundError, OciError, TransportError
from ...documents import (
    Descriptor,
    ImageConfig,
    Manifest,
    image_layers,
    parse_config,
    parse_index,
    parse_manifest,
    verify_content,
)
from ...jsondoc import brief, parse_json
from ...limits import Limits
from ...platforms import Candidate, Platform, choose
from ..base import BlockingBlob, ResolvedImage
from ..familiar import normalized_name
from ..resolving import listing
from .configuration import store_places
from .layers import StoredLayer, opened_layer
from .records import ImageRecord, LayerRecord, Store, layer_directory
from .reference import ImageName, StorageReference, parse_reference

__all__ = ["ContainersStorageSource", "check_reference", "open_reference"]

Check = Callable[[], object]
_MAX_LAYERS = 4096
_SHORTEST = 3  # digits of an id


def check_reference(reference: str) -> None:
    """Check the spelling of ``containers-storage:[[driver@]root[+run][:options]]NAME``.

    Raises:
        InvalidNameError: *reference* is not spelled so.
    """
    parse_reference(reference)


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[ContainersStorageSource]:
    """The image that *reference* means, in the store that it names, or those of the configuration.

    Raises:
        InvalidNameError: as `check_reference`.
        OciError, TransportError: the configuration cannot be read.
    """
    parsed = parse_reference(reference)
    places = await hop(store_places, parsed)
    yield ContainersStorageSource([Store(place) for place in places], parsed, limits)


class ContainersStorageSource:
    """An image in one of several stores, as an `ImageSource`."""

    def __init__(self, stores: Sequence[Store], wanted: StorageReference, limits: Limits) -> None:
        self._stores, self._wanted, self._limits = stores, wanted, limits
        self._layers: dict[str, StoredLayer] = {}

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find the image and read its documents, like `ImageSource.resolve`; *tag* is a name, *digest* a manifest's."""
        image = self._wanted.image
        if tag is not None or digest is not None:
            image = ImageName(tag or f"@{digest}", normalized_name(tag) if tag else None, digest)
        return await in_checked_thread(lambda check: self._resolve(image, platform, check))

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[BlockingBlob]:
        """Open a layer of a resolved image, like `ImageSource.open_blob`; it comes unpacked."""
        layer = self._layers.get(descriptor.digest)
        if layer is None:
            raise TransportError(f"{self._wanted.reference} has no layer {descriptor.digest}")
        return opened_layer(layer, descriptor.size, self._limits)

    # -- finding -------------------------------------------------------------------------------

    def _resolve(self, wanted: ImageName, platform: Platform | None, check: Check) -> ResolvedImage:
        stores = [store for store in self._stores if store.exists]
        if not stores:
            places = ", ".join(str(store.root) for store in self._stores)
            raise ImageNotFoundError(self._wanted.reference, reason=f"there is no store at {places}")
        images: list[ImageRecord] = []
        for store in stores:
            with store.locked("images", check):
                images += store.images()
        record = self._find(images, wanted)
        with record.store.locked("images", check):
            manifest, record = self._manifest(record, images, wanted, platform)
            raw = record.store.big_data(record, manifest.config.digest, self._limits.document_size)
        verify_content(f"config {manifest.config.digest}", raw, manifest.config.digest)
        config = parse_config(raw, manifest.config.digest, limit=self._limits.document_size)
        layers = image_layers(manifest, config)
        chain = self._chain(record, config, stores, check)
        for layer, found in zip(layers, chain, strict=True):
            self._layers[layer.descriptor.digest] = found
        return ResolvedImage(self._wanted.reference, manifest, config, raw, layers)

    def _find(self, images: Sequence[ImageRecord], wanted: ImageName) -> ImageRecord:
        found = _by_id(images, wanted) if wanted.id is not None else _by_name(images, wanted)
        if not found:
            raise ImageNotFoundError(self._wanted.reference, reason=_similar(images, wanted))
        if wanted.id is not None and len({image.id for image in found}) > 1:
            raise OciError(self._wanted.reference, "several ids begin so: give more of it")
        return found[0]

    def _manifest(
        self, record: ImageRecord, images: Sequence[ImageRecord], wanted: ImageName, platform: Platform | None
    ) -> tuple[Manifest, ImageRecord]:
        """The manifest that is meant, and the record that has its layers; of an index the one that fits."""
        limit = self._limits.document_size
        key = record.manifests.get(wanted.digest or "", "manifest")
        raw = record.store.big_data(record, key, limit)
        digest = wanted.digest if wanted.digest in record.manifests else None
        if digest is None:
            digest = next((each for each, name in record.manifests.items() if name == key), None)
        digest = digest or sha256_content_digest(raw)
        verify_content(f"manifest of {self._wanted.reference}", raw, digest)
        if "manifests" not in parse_json(raw, f"manifest {digest}", limit=limit).members:
            return parse_manifest(raw, digest, limit=limit), record
        index = parse_index(raw, f"index {digest}", limit=limit)
        candidates = [Candidate(entry.digest, entry.platform) for entry in index.manifests]
        chosen = choose(candidates, platform, what=self._wanted.reference, tagged=True).digest
        inner = next((image for image in images if chosen in image.manifests and image.layer is not None), None)
        if inner is None:
            raise ImageNotFoundError(self._wanted.reference, reason=f"manifest {chosen} of its list is not there")
        raw = inner.store.big_data(inner, inner.manifests[chosen], limit)
        verify_content(f"manifest {chosen}", raw, chosen)
        return parse_manifest(raw, chosen, limit=limit), inner

    def _chain(
        self, record: ImageRecord, config: ImageConfig, stores: Sequence[Store], check: Check
    ) -> list[StoredLayer]:
        """The layers, lowest first, each in whichever store has it."""
        known: dict[str, LayerRecord] = {}
        for store in [record.store, *(each for each in stores if each is not record.store)]:
            with store.locked("layers", check):
                known = store.layers() | known
        chain: list[LayerRecord] = []
        layer_id = record.layer
        while layer_id is not None and len(chain) < _MAX_LAYERS:
            if layer_id not in known:
                raise OciError(self._wanted.reference, f"its layer {layer_id} is in no store")
            chain.append(known[layer_id])
            layer_id = known[layer_id].parent
        chain.reverse()
        if len(chain) != len(config.diff_ids):
            raise OciError(
                self._wanted.reference, f"it has {len(chain)} layers, but its config has {len(config.diff_ids)}"
            )
        found: list[StoredLayer] = []
        for at, (layer, diff_id) in enumerate(zip(chain, config.diff_ids, strict=True)):
            if layer.diff_id not in (None, diff_id):
                raise OciError(
                    self._wanted.reference, f"its layer {layer.id} is {layer.diff_id}, but its config says {diff_id}"
                )
            below = [] if layer.store.driver == "vfs" else chain[:at][::-1]
            roots = tuple(layer_directory(each, stores) for each in (layer, *below))
            lock = partial(layer.store.locked, "layers")
            found.append(StoredLayer(diff_id, layer.store.recipe(layer.id), roots, lock))
        return found


def _by_id(images: Sequence[ImageRecord], wanted: ImageName) -> list[ImageRecord]:
    found = [image for image in images if image.id.startswith(wanted.id or "")]
    if wanted.name is not None:
        repository = _repository(wanted.name)
        found = [image for image in found if repository in map(_repository, image.names)]
    return [image for image in found if wanted.digest is None or wanted.digest in image.manifests]


def _by_name(images: Sequence[ImageRecord], wanted: ImageName) -> list[ImageRecord]:
    if wanted.digest is None:
        if wanted.name is not None:
            found = [image for image in images if wanted.name in image.names]
            if found:
                return found[:1]
        ids = (
            {image.id for image in images if image.id.startswith(wanted.text)} if len(wanted.text) >= 3 else set[str]()
        )
        return [image for image in images if image.id in ids] if len(ids) == 1 else []
    found = [image for image in images if wanted.digest in image.manifests]
    if wanted.name is not None:
        repository = _repository(wanted.name)
        found = [image for image in found if repository in map(_repository, image.names)]
    return found


def _repository(name: str) -> str:
    """A name without tag and digest."""
    name = name.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _similar(images: Sequence[ImageRecord], wanted: ImageName) -> str:
    """What there is of the same last component; a hint, and never taken for what was meant."""
    last = _repository(wanted.name or wanted.text).rpartition("/")[2]
    names = sorted({name for image in images for name in image.names})
    close = [name for name in names if _repository(name).rpartition("/")[2] == last]
    if close:
        return f"there are {listing([brief(name) for name in close])}"
    return f"there are {listing([brief(name) for name in names])}" if names else "the store has no images"
