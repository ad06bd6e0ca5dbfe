"""The steps of a conversion: functions that block, take and return plain values, and can run twice or die anywhere.

Each begins with a look whether its result is in the store.  A key that equal work shares lets an engine run it once;
where two run all the same, the second finds what the first has done, or loses the race for its name, which is success.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial

import anyio

from .._aio.hops import hop
from ..digest import Algorithm
from ..errors import OciError, RefConflictError, StoreError
from ..exchange import Store, open_store, publish_layer
from ..exchange.composing import compose_image
from ..naming import image_ref, manifest_stream
from ..oci import Platform, import_layer
from ..oci.sources.opening import open_source
from ..repository import Repository

__all__ = ["ImagePlan", "LayerPlan", "image_step", "layer_key", "layer_name", "layer_step", "resolve_step"]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer of an image."""

    diff_id: str
    digest: str
    """Digest of the blob as shipped."""


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image whose documents are known."""

    reference: str
    manifest_digest: str
    manifest: bytes
    config: bytes
    layers: tuple[LayerPlan, ...]
    """Lowest first; a layer may occur twice."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step has done."""

    digest: str
    """Digest of the artifact in the store, or in hexadecimal the id of the EROFS image."""
    made: bool
    """False if it was there."""


def layer_name(algorithm: Algorithm, diff_id: str) -> str:
    """The name in a store by which machines share the result of converting a layer."""
    return f"layers/{algorithm.value}/{diff_id}"


def layer_key(algorithm: Algorithm, diff_id: str) -> str:
    """What equal work on a layer shares."""
    return f"layer-{algorithm.value}-{diff_id}"


def image_key(algorithm: Algorithm, name: str, manifest_digest: str) -> str:
    """What equal work on an image shares."""
    return f"image-{algorithm.value}-{name}-{manifest_digest}"


# -- steps -------------------------------------------------------------------------------------


def resolve_step(reference: str, platform: Platform | None = None) -> ImagePlan:
    """Read manifest and config of *reference*, verified.  Blocks.

    Raises:
        ImageNotFoundError, OciError, DigestMismatchError, TransportError
    """
    return anyio.run(_resolve, reference, platform)


async def _resolve(reference: str, platform: Platform | None) -> ImagePlan:
    async with open_source(reference) as source:
        image = await source.resolve(platform=platform)
    if image.config is None:
        raise OciError(reference, "it is an artifact, whose layers make no tree")
    layers = tuple(LayerPlan(layer.name, layer.descriptor.digest) for layer in image.layers)
    return ImagePlan(reference, image.manifest.digest, image.manifest.raw, image.config_raw, layers)


def layer_step(
    reference: str,
    layer: LayerPlan,
    url: str,
    algorithm: Algorithm,
    endpoint: str | None = None,
    platform: Platform | None = None,
) -> StepResult:
    """See to it that the store at *url* has a layer of *reference*, unpacked.  Blocks.

    Raises:
        DigestMismatchError, TarError, CompressionError, TransportError: the layer cannot be had, or is none.
        StoreError
    """
    return anyio.run(partial(_layer, reference, layer, url, algorithm, endpoint, platform))


async def _layer(
    reference: str,
    layer: LayerPlan,
    url: str,
    algorithm: Algorithm,
    endpoint: str | None,
    platform: Platform | None,
) -> StepResult:
    name = layer_name(algorithm, layer.diff_id)
    async with open_store(url, endpoint=endpoint) as store:
        if (found := await store.ref(name)) is not None:
            return StepResult(found.digest, made=False)
        directory = await hop(partial(tempfile.TemporaryDirectory, prefix="composefs-async-fleet-"))
        try:
            async with Repository.init_async(directory.name, algorithm=algorithm, insecure=True) as repo:
                await _import(repo, reference, layer, platform)
                return await _publish(repo, store, layer.diff_id, name)
        finally:
            await hop(directory.cleanup)


async def _import(repo: Repository, reference: str, layer: LayerPlan, platform: Platform | None) -> None:
    async with open_source(reference) as source:
        image = await source.resolve(platform=platform)
        for each in image.layers:
            if each.name == layer.diff_id:
                async with source.open_blob(each.descriptor) as blob:
                    await import_layer(repo, layer.diff_id, blob, media_type=each.descriptor.media_type)
                return
    raise OciError(reference, f"it has no layer {layer.diff_id} any more")


async def _publish(repo: Repository, store: Store, diff_id: str, name: str) -> StepResult:
    try:
        result = await publish_layer(repo, diff_id, store, name=name)
    except RefConflictError:
        found = await store.ref(name)
        if found is None:
            raise
        return StepResult(found.digest, made=False)
    return StepResult(result.manifest_digest, not result.unchanged)


def image_step(plan: ImagePlan, name: str, url: str, algorithm: Algorithm, endpoint: str | None = None) -> StepResult:
    """Publish an image whose layers are in the store, composed of their streams alone.  Blocks.

    No file's content is fetched: the EROFS image is built from the streams, and the manifest uses the layers' packs.

    Raises:
        StoreError: a layer is not in the store.
        OciError, ErofsError, FormatError: no image can be made.
    """
    return anyio.run(partial(_image, plan, name, url, algorithm, endpoint))


async def _image(plan: ImagePlan, name: str, url: str, algorithm: Algorithm, endpoint: str | None) -> StepResult:
    async with open_store(url, endpoint=endpoint) as store:
        found = await store.ref(name)
        if found is not None:
            config = await hop(store.read_config, await store.manifest(found))
            if config.root == manifest_stream(plan.manifest_digest) and config.algorithm is algorithm:
                return StepResult(next(iter(config.images), ""), made=False)
        names = [layer_name(algorithm, layer.diff_id) for layer in plan.layers]
        directory = await hop(partial(tempfile.TemporaryDirectory, prefix="composefs-async-fleet-"))
        try:
            async with Repository.init_async(directory.name, algorithm=algorithm, insecure=True) as repo:
                image_id = await compose_image(repo, store, plan.manifest, plan.config, names, name)
        finally:
            await hop(directory.cleanup)
    if image_id is None:
        raise StoreError(url, f"{name} has no image {image_ref(1)}")
    return StepResult(image_id, made=True)
