"""What is done with objects that have arrived, from wherever: found missing before, proven after, and named last."""

from __future__ import annotations

import os

from anyio import create_task_group

from .._aio.groups import single_error
from .._aio.hops import hop
from .._aio.to_thread import in_checked_thread
from .._repo.publish import Link, publish, target_of
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import DigestMismatchError, FormatError, InvalidNameError, StoreFormatError
from ..naming import tag_reference
from .closure import Walked
from .documents import Config
from .proving import prove_images, prove_stream, unproven
from .table import KEY_SIZE

__all__ = ["check_expected", "present_keys", "prove", "publish_names"]

_PROVERS = 2


async def prove(
    state: RepoState, walked: Walked, config: Config, *, image: ObjectId | None = None, all_images: bool = False
) -> None:
    """Compare all that is about to be named with the digests in the names.

    Args:
        config: what the sender has said; its names must be among those that were derived.
        image: the id that the EROFS image must have.
        all_images: compare every EROFS image with what the layers make.

    Raises:
        DigestMismatchError: something is not what its name says.
        FormatError: it makes no sense.
    """
    if not config.streams.items() <= walked.streams.items():
        raise StoreFormatError(walked.root, "its config has names that nothing leads to")
    if not config.images.keys() <= {found.hex() for found in walked.images}:
        raise StoreFormatError(walked.root, "its config has images that nothing leads to")
    queue = iter(await hop(unproven, state, walked))

    async def work() -> None:
        for name in queue:
            await in_checked_thread(
                lambda check, name=name: prove_stream(state, name, walked.streams[name], check)  # type: ignore[misc]
            )

    with single_error():
        async with create_task_group() as tasks:
            for _ in range(min(_PROVERS, os.cpu_count() or 1)):
                tasks.start_soon(work)
    if all_images and walked.root in walked.streams:
        await hop(prove_images, state, walked, image)


def publish_names(state: RepoState, walked: Walked, tag: str | None) -> None:
    """Publish all names, the tag last, unless all are there.  Durable; blocks."""
    links = [Link.to_object("streams", name, found) for name, found in reversed(walked.streams.items())]
    links += [Link.to_object("images", found.hex(), found) for found in walked.images]
    if tag is not None and walked.root in walked.streams:
        links.append(Link.reference("streams", tag_reference(tag), walked.root))
    elif tag is not None:
        links.append(Link.reference("images", tag, walked.root))
    if any(target_of(state, link.path) != link.target for link in links):
        publish(state, links)


def check_expected(expect: str, manifest_digest: str, config: Config) -> ObjectId | None:
    """Refuse before anything is fetched; the id of an image that is expected, to be proven later.

    Raises:
        DigestMismatchError: the store says itself that it is something else.
        FormatError: it is no digest.
    """
    if expect == manifest_digest or config.root == f"oci-manifest-{expect}":
        return None
    try:
        wanted = ObjectId.from_hex(expect)
    except FormatError:
        raise InvalidNameError(expect, "what is expected is no digest") from None
    if wanted.hex() in config.images:
        return wanted
    said = ", ".join(filter(None, [manifest_digest, config.root, *config.images]))
    raise DigestMismatchError("what the store has", expect, said)


def present_keys(state: RepoState) -> set[bytes]:
    """The start of the id of each object that is there, as tables have it."""
    found: set[bytes] = set()
    digits = 2 * KEY_SIZE - 2
    for shard in range(256):
        name = f"{shard:02x}"
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=state.objects_fd)
        except FileNotFoundError:
            continue
        try:
            entries = os.listdir(fd)
        finally:
            os.close(fd)
        for entry in entries:
            try:
                found.add(bytes.fromhex(name + entry[:digits]))
            except ValueError:
                continue  # a temporary file
    return found
