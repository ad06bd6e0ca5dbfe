"""Bootable EROFS images of OCI images: made, kept with the image, found again, removed.

Owns which of them an image has; the stream of its config refers to them.  Does not own their trees (`trees`), nor the
images that containers run from (`oci.images`).  Functions here block; ``x_async`` runs ``x`` in a worker thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._repo import objects
from .._repo.state import RepoState
from ..digest import ObjectId
from ..erofs.writer import image_pieces
from ..errors import AlgorithmMismatchError, BootError, OciError
from ..naming import BOOT_IMAGE_REF, BOOT_IMAGE_V1_REF, KEEP_USER_XATTRS, boot_image_ref
from ..oci.catalogue import OciImage, open_image
from ..oci.erofs_images import Documents, ensure_images, find_images, image_tree, publish_image
from ..repository import Repository, state_of
from ..tree.inodes import Directory
from ..tree.transform import XattrFilter
from .reading import object_reader
from .trees import image_boot_tree
from .variants import KEPT_MODES, Variant, find_variant

__all__ = [
    "FoundBootImage",
    "ensure_boot_image",
    "ensure_boot_image_async",
    "find_boot_image",
    "find_boot_image_async",
    "remove_boot_image",
    "remove_boot_image_async",
]

_REFS: Final = frozenset(
    boot + suffix for boot in (BOOT_IMAGE_REF, BOOT_IMAGE_V1_REF) for suffix in ("", KEEP_USER_XATTRS)
)


@operation
def ensure_boot_image(
    repo: Repository, name: str, *, xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY, versions: tuple[int, ...] = ()
) -> OciImage:
    """Make the bootable images that the image *name* (a tag or ``@DIGEST``) lacks.  Durable.

    One is made for each layout that the repository wants; nothing is built or written if all are there.  The images
    of both choices of *xattrs* stay beside each other.  A crash leaves the image as it was, or complete names.

    Args:
        versions: of the layouts, in place of those that the repository wants.

    Raises:
        BootError: the tree lacks ``/usr``, ``/boot`` or ``/sysroot``; or *xattrs* is `XattrFilter.NONE`, for which
            there is no name.
        OciError: it is an artifact.
        SELinuxPolicyError, ErofsError, ReadOnlyRepositoryError
        The errors of `open_image`.
    """
    keep_user = _keeps_user(xattrs)
    state = state_of(repo)
    with state.shared():
        state.require_writable()
        image = _container(repo, name)
        found = find_images(state, image.manifest.config.digest)
        wanted: dict[str, int] = {}
        for version in versions or state.metadata.formats:
            wanted.setdefault(boot_image_ref(version, keep_user_xattrs=keep_user), version)
        missing = {ref: version for ref, version in wanted.items() if ref not in found}
        if missing:
            root = image_boot_tree(repo, image, xattrs=xattrs)
            found.update((ref, _store(state, root, version)) for ref, version in missing.items())
        publish_image(state, _documents(image), found)
        return open_image(repo, f"@{image.manifest.digest}")


@async_operation
async def ensure_boot_image_async(
    repo: Repository, name: str, *, xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY, versions: tuple[int, ...] = ()
) -> OciImage:
    """Make missing bootable images in a worker thread; see `ensure_boot_image`."""
    return await hop(ensure_boot_image, repo, name, xattrs=xattrs, versions=versions)


@operation
def remove_boot_image(repo: Repository, name: str) -> OciImage:
    """Let the image *name* refer to no bootable image any more, durably; the next gc removes those that it had.

    Raises:
        OciError: it is an artifact.
        ReadOnlyRepositoryError, and the errors of `open_image`.
    """
    state = state_of(repo)
    with state.shared():
        state.require_writable()
        image = _container(repo, name)
        found = find_images(state, image.manifest.config.digest)
        kept = {ref: image_id for ref, image_id in found.items() if ref not in _REFS}
        publish_image(state, _documents(image), kept, forget=_REFS)
        return open_image(repo, f"@{image.manifest.digest}")


@async_operation
async def remove_boot_image_async(repo: Repository, name: str) -> OciImage:
    """Remove references to bootable images in a worker thread; see `remove_boot_image`."""
    return await hop(remove_boot_image, repo, name)


# -- by its digest -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundBootImage:
    """How an image has to be made so that it has the digest that a kernel expects."""

    id: ObjectId
    variant: Variant
    tried: int
    """Images that were built."""


@operation
def find_boot_image(repo: Repository, name: str, expected: ObjectId) -> FoundBootImage:
    """Find out which bootable image of *name* has the digest *expected*; store it and refer to it, durably.

    Tried are the images that are there, then what programs and their versions do differently: attributes that are
    kept, layouts, nanoseconds of emptied directories, labels, metadata of directories that no layer lists.

    Raises:
        BootError: none of them has it.
        AlgorithmMismatchError: it is a digest of another algorithm.
        OciError, SELinuxPolicyError, ReadOnlyRepositoryError, and the errors of `open_image`.
    """
    state = state_of(repo)
    if expected.algorithm is not state.algorithm:
        raise AlgorithmMismatchError("the expected digest", state.algorithm.value, expected.algorithm.value)
    with state.shared():
        state.require_writable()
        image = _container(repo, name)
        refs = find_images(state, image.manifest.config.digest)
        known = _known(refs, expected)
        if known is not None:
            return FoundBootImage(expected, known, 0)
        make, read = partial(image_tree, repo, image), object_reader(state)
        found, tried = find_variant(make, read, expected, kept_only=True)
        if found is not None:
            variant, content = found
            objects.ensure_object(state, content)
            ref = boot_image_ref(variant.version, keep_user_xattrs=_keeps_user(variant.xattrs))
            publish_image(state, _documents(image), {**refs, ref: expected})
            return FoundBootImage(expected, variant, tried)
    what = f"no bootable image of it has the digest {expected.hex()}; {tried} were tried"
    raise BootError(f"image {name}", what)


@async_operation
async def find_boot_image_async(repo: Repository, name: str, expected: ObjectId) -> FoundBootImage:
    """Find a bootable image by its digest in a worker thread; see `find_boot_image`."""
    return await hop(find_boot_image, repo, name, expected)


def _known(refs: dict[str, ObjectId], expected: ObjectId) -> Variant | None:
    for xattrs in KEPT_MODES:
        for version in (1, 2):
            if refs.get(boot_image_ref(version, keep_user_xattrs=_keeps_user(xattrs))) == expected:
                return Variant(xattrs, version)
    return None


# -- helpers -----------------------------------------------------------------------------------


def _container(repo: Repository, name: str) -> OciImage:
    image = open_image(repo, name)
    if image.config is None:
        raise OciError(f"manifest {image.manifest.digest}", "it is an artifact, whose layers make no tree")
    return ensure_images(repo, name) if image.manifest_id is None else image


def _documents(image: OciImage) -> Documents:
    assert image.config is not None
    layers = tuple((diff_id, image.layers[diff_id]) for diff_id in image.config.diff_ids)
    digest = image.manifest.config.digest
    return Documents(image.manifest.digest, image.manifest.raw, digest, image.config_raw, layers)


def _keeps_user(xattrs: XattrFilter) -> bool:
    if xattrs is XattrFilter.NONE:
        raise BootError("bootable image", "one that keeps all attributes cannot be kept with the image")
    return xattrs is XattrFilter.KEEP_USER_XATTRS


def _store(state: RepoState, root: Directory, version: int) -> ObjectId:
    return objects.ensure_object_from(state, image_pieces(root, state.algorithm, version)).id
