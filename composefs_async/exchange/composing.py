"""An image made of layers that a store has, from their streams alone: no file's content is moved.

Owns what is fetched for that, and publishing an image most of whose objects are in the store and not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .._aio.hops import hop, using
from .._aio.operations import async_operation
from .._maintenance.fsck.object_reader import sizes
from .._repo.publish import Link, publish
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import FetchError, ObjectNotFoundError
from ..oci import add_image
from ..repository import Repository, state_of
from .closure import Closure, root_of, walk
from .documents import Config, Manifest
from .plan import Base, plan_ranges
from .publication import Publication
from .publisher import describe_image
from .receiving import Receiver
from .store import Store
from .table import KEY_SIZE, Kind, Table
from .transfers import Deal, Source

__all__ = ["compose_image"]


@async_operation
async def compose_image(
    repo: Repository, store: Store, manifest: bytes, config: bytes, layers: Sequence[str], name: str
) -> str | None:
    """Publish the image with these documents as *name*; returns the id of its EROFS image in hexadecimal.

    The layers' streams are fetched into *repo*, which should be one for this purpose alone: what they refer to is not.

    Args:
        layers: names of layer artifacts in the store, the lowest first.

    Raises:
        ImageNotFoundError: a layer is not in the store.
        FetchError: a stream is to be had from nowhere, or damaged.
        OciError, ErofsError: no image can be made of the layers.
        RefConflictError, StoreError
    """
    state = state_of(repo)
    bases: list[Base] = []
    for each in dict.fromkeys(layers):
        artifact = await store.resolve(each)
        about = await hop(store.read_config, artifact)
        table = await hop(store.read_table, artifact, about)
        await _fetch_streams(state, store, each, artifact, about, table)
        bases.append(Base(artifact.blobs, table))
    await add_image(repo, manifest, config, tag="image")
    async with using(state):
        closure = await hop(partial(_closure, repo, bases))
        subject, annotations = await hop(describe_image, repo, "image")
        publication = Publication(state, store, closure, name)
        result = await publication.run((), subject, annotations, known=bases)
    return result.image_id


async def _fetch_streams(
    state: RepoState, store: Store, name: str, manifest: Manifest, config: Config, table: Table
) -> None:
    """Bring the streams of a layer, and name them."""
    wanted = [at for at in range(len(table)) if table.kinds[at] != Kind.FILE]
    receiver = Receiver(state, table, {})
    deal = Deal(
        receiver,
        manifest.blobs,
        [Source(store)],
        transfers=store.transfers,
        report=lambda event: None,
        moved=lambda size, objects: None,
    )
    await deal.run(plan_ranges(table, wanted, [blob.size for blob in manifest.blobs]))
    if config.root_id not in receiver.ids and await hop(lambda: min(sizes(state, config.root_id)) < 0):
        raise FetchError(name, (config.root_id.hex(),), {store.url: "the stream of the layer is not to be had"})
    links = [Link.to_object("streams", stream, found) for stream, found in config.streams.items()]
    await hop(publish, state, links)


def _closure(repo: Repository, bases: Sequence[Base]) -> Closure:
    """Everything that the image needs; what is not here must be in *bases*.  Blocks."""
    state = state_of(repo)
    root, root_id = root_of(repo, "image")
    walked = walk(state, root, root_id)
    if walked.missing:
        raise ObjectNotFoundError(walked.missing[0].hex())
    first = [found for found, kind in walked.kinds.items() if kind != Kind.FILE]
    ids = [*first, *(found for found, kind in walked.kinds.items() if kind == Kind.FILE)]
    elsewhere: dict[bytes, int] = {}
    for base in bases:
        for key, at in base.table.index().items():
            elsewhere[key] = base.table.sizes[at]
    known = [
        elsewhere.get(found[:KEY_SIZE], -1) if size < 0 else size
        for found, size in zip(ids, sizes(state, b"".join(ids)), strict=True)
    ]
    lost = [found for found, size in zip(ids, known, strict=True) if size < 0]
    if lost:
        raise ObjectNotFoundError(lost[0].hex(), reason="no layer in the store has it")
    by_id: dict[ObjectId, int] = dict(zip(ids, known, strict=True))
    return Closure(
        "image",
        root,
        tuple(ids),
        tuple(known),
        bytes(walked.kinds[found] for found in ids),
        walked.streams,
        {found.hex(): by_id[found] for found in walked.images},
    )
