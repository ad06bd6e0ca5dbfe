"""What images and layers a repository holds, and their tags.

Owns listing, resolving and tagging images, and looking into layers.  Does not own importing (`pull`, `layers`) nor
what documents and tar headers mean (`documents`, `tarentries`).

Functions here block; ``x_async`` runs ``x`` in a worker thread.  Documents are verified against the digests they are
known by and bounded in size; a repository that somebody else made is safe to look at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from .._aio.bulk import iterate
from .._aio.hops import hop
from ..digest import ObjectId, check_content_digest
from ..errors import (
    ComposefsError,
    DigestMismatchError,
    FormatError,
    InvalidNameError,
    OciError,
    StreamNotFoundError,
    inputs_named,
)
from ..repository import Repository
from ..splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from ..tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from ..tree.dumpwriter import format_entry, format_link
from . import january
from .documents import ImageConfig, Manifest, content_hasher, parse_config, parse_manifest, verify_content
from .jsondoc import DOCUMENT_LIMIT
from .names import (
    IMAGE_REFS,
    TAGS,
    boot_image_ref,
    config_ref,
    config_stream,
    decode_tag,
    digest_of_manifest_stream,
    encode_tag,
    image_ref,
    layer_stream,
    manifest_stream,
    tag_reference,
)
from .tarentries import EntryType, TarEntry, read_entries

__all__ = [
    "ImageSummary",
    "LayerInfo",
    "OciImage",
    "images",
    "images_async",
    "layer_content",
    "layer_content_async",
    "layer_dump",
    "layer_entries",
    "layer_info",
    "layer_info_async",
    "open_image",
    "open_image_async",
    "referrers",
    "tag",
    "tag_async",
    "untag",
    "untag_async",
]

_REFERRERS = "oci-referrers"


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image or artifact whose manifest and config have been verified."""

    manifest: Manifest
    config: ImageConfig | None
    """None for an artifact."""
    config_raw: bytes = field(repr=False)
    manifest_id: ObjectId | None
    """Of the manifest's stream; None if none was stored, as in January 2026, and *manifest* only stands in for it."""
    config_id: ObjectId
    layers: dict[str, ObjectId]
    """Streams by diff_id, or by layer digest for an artifact, in the order of the config."""
    images: dict[str, ObjectId]
    """EROFS images by the name of their reference, ``composefs.image…``."""

    def image(self, version: int) -> ObjectId | None:
        """The EROFS image in format *version* (0, 1 or 2), if it has been made."""
        return self.images.get(image_ref(version))

    def boot_image(self, version: int) -> ObjectId | None:
        """The same for the image that a machine boots."""
        return self.images.get(boot_image_ref(version))


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """One tag."""

    name: str
    manifest_digest: str
    is_container: bool = False
    architecture: str = ""
    os: str = ""
    created: str | None = None
    layer_count: int = 0
    referrer_count: int = 0
    error: str | None = None
    """Why the image cannot be opened; the fields above it are empty then."""
    without_manifest: bool = False
    """It is from January 2026: the digest is that of the manifest that `images.ensure_images` will make."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What a stored layer consists of."""

    diff_id: str
    stream_id: ObjectId
    size: int
    """Of the tar, in bytes."""
    entries: int
    external_objects: int
    """Distinct ones."""
    external_size: int
    """Content of files that are objects, in bytes, counted as often as it occurs."""
    inline_size: int


# -- images ------------------------------------------------------------------------------------


def images(repo: Repository) -> list[ImageSummary]:
    """All tags, sorted by name; one whose image is broken is in the list, with its error."""
    referrers = _referrer_counts(repo)
    found = {}
    for reference, stream in repo.named_streams(TAGS):
        digest = digest_of_manifest_stream(stream)
        if digest is not None and "/" not in reference:
            name = decode_tag(reference)
            found[name] = _summary(repo, name, f"@{digest}", digest, referrers.get(digest, 0))
    for name in january.references(repo).keys() - found.keys():
        found[name] = _summary(repo, name, name, "", 0)
    return sorted(found.values(), key=lambda image: image.name)


async def images_async(repo: Repository) -> list[ImageSummary]:
    return await hop(images, repo)


def _summary(repo: Repository, name: str, known_as: str, digest: str, referrers: int) -> ImageSummary:
    try:
        image = open_image(repo, known_as)
    except (ComposefsError, OSError) as error:
        return ImageSummary(name, digest, referrer_count=referrers, error=str(error), without_manifest=not digest)
    config = image.config
    platform = config.platform if config else None
    return ImageSummary(
        name,
        image.manifest.digest,
        config is not None,
        platform.architecture if platform else "",
        platform.os if platform else "",
        config.created if config else None,
        len(image.manifest.layers),
        referrers,
        without_manifest=image.manifest_id is None,
    )


def _referrer_counts(repo: Repository) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reference, _ in repo.named_streams(_REFERRERS):
        subject = decode_tag(reference.partition("/")[0])
        counts[subject] = counts.get(subject, 0) + 1
    return counts


def referrers(repo: Repository, manifest_digest: str) -> list[str]:
    """Digests of the manifests that are recorded as referring to *manifest_digest*, sorted."""
    check_content_digest(manifest_digest)
    found = repo.named_streams(f"{_REFERRERS}/{encode_tag(manifest_digest)}")
    return [digest for _, stream in found if (digest := digest_of_manifest_stream(stream))]


def open_image(repo: Repository, name: str) -> OciImage:
    """The image with the tag *name*, or with the manifest digest *name* (``@sha256:…`` or ``sha256:…``).

    An image of January 2026 goes by its reference; see `january` for the manifest that it has then.

    Raises:
        StreamNotFoundError: there is none.
        InvalidNameError: it can be neither.
        DigestMismatchError, OciError, SplitstreamError: it is damaged.
    """
    digest = _manifest_digest(repo, name)
    if digest is None:
        return _open_without_manifest(repo, name)
    raw, refs, manifest_id = _document(repo, manifest_stream(digest), OCI_MANIFEST)
    verify_content(f"manifest {digest}", raw, digest)
    manifest = parse_manifest(raw, digest)
    config_id = refs.get(config_ref(manifest.config.digest))
    if config_id is None:
        raise OciError(f"manifest {digest}", f"its stream does not refer to its config {manifest.config.digest}")
    config_raw, config_refs, _ = _document(repo, "", OCI_CONFIG, config_id)
    verify_content(f"config {manifest.config.digest}", config_raw, manifest.config.digest)
    config = parse_config(config_raw, manifest.config.digest) if manifest.is_container else None
    names = config.diff_ids if config else tuple(layer.digest for layer in manifest.layers)
    layers = _require_layers(manifest.config.digest, names, {**refs, **config_refs})
    images = {key: config_refs[key] for key in sorted(config_refs.keys() & IMAGE_REFS)}
    return OciImage(manifest, config, config_raw, manifest_id, config_id, layers, images)


def _open_without_manifest(repo: Repository, reference: str) -> OciImage:
    digest = january.references(repo).get(reference)
    if digest is None:
        raise StreamNotFoundError(reference, "image")
    raw, refs, config_id = _document(repo, config_stream(digest), OCI_CONFIG)
    verify_content(f"config {digest}", raw, digest)
    config = parse_config(raw, digest)
    layers = _require_layers(digest, config.diff_ids, refs)
    manifest = january.stand_in_manifest(repo, config, layers)
    images = {key: refs[key] for key in sorted(refs.keys() & IMAGE_REFS)}
    return OciImage(manifest, config, raw, None, config_id, layers, images)


def _require_layers(config_digest: str, names: Iterable[str], refs: Mapping[str, ObjectId]) -> dict[str, ObjectId]:
    if missing := [layer for layer in names if layer not in refs]:
        raise OciError(f"config {config_digest}", f"its stream does not refer to the layer {missing[0]}")
    return {layer: refs[layer] for layer in names}


async def open_image_async(repo: Repository, name: str) -> OciImage:
    return await hop(open_image, repo, name)


def _manifest_digest(repo: Repository, name: str) -> str | None:
    if name.startswith("@"):
        return _digest(name, name[1:])
    wanted = tag_reference(name).removeprefix(f"{TAGS}/")
    stream = dict(repo.named_streams(TAGS)).get(wanted)
    digest = digest_of_manifest_stream(stream) if stream else None
    if digest is None and name.partition(":")[0] in ("sha256", "sha384", "sha512"):
        digest = _digest(name, name)
    return digest


def _digest(name: str, digest: str) -> str:
    try:
        return check_content_digest(digest)
    except FormatError:
        raise InvalidNameError(name, "it is no content digest") from None


def _document(
    repo: Repository, name: str, content_type: int, object_id: ObjectId | None = None
) -> tuple[bytes, dict[str, ObjectId], ObjectId]:
    """Payload, named references and id of a stream; the payload may be an object or, from January 2026, inline."""
    if object_id is None:
        object_id = repo.has_stream(name)
        if object_id is None:
            raise StreamNotFoundError(name)
    with repo.open_stream(name, object_id, content_type) as reader:
        payload = reader.payload(lambda found: [repo.read_object(found, max_size=DOCUMENT_LIMIT)], limit=DOCUMENT_LIMIT)
        return payload, dict(reader.named_refs), object_id


def tag(repo: Repository, manifest_digest: str, name: str) -> None:
    """Name the image with that manifest; durable on return.

    Raises:
        StreamNotFoundError: there is no such manifest.
        InvalidNameError
    """
    repo.name_stream(manifest_stream(manifest_digest), tag_reference(name))


async def tag_async(repo: Repository, manifest_digest: str, name: str) -> None:
    await hop(tag, repo, manifest_digest, name)


def untag(repo: Repository, name: str) -> None:
    """Remove a tag, durably; what it led to stays until garbage is collected.

    Raises:
        StreamNotFoundError: there is no such tag.
    """
    if not repo.unname_stream(tag_reference(name)):
        raise StreamNotFoundError(name, "tag")


async def untag_async(repo: Repository, name: str) -> None:
    await hop(untag, repo, name)


# -- layers ------------------------------------------------------------------------------------


def layer_content(repo: Repository, diff_id: str) -> Iterator[bytes]:
    """The tar archive of a layer as it came in, in pieces of at most 1 MiB; compared with *diff_id* at the end.

    Raises:
        StreamNotFoundError, SplitstreamError
        DigestMismatchError: after the last piece, or that of an object; what was given out before is not to be used.
    """
    hasher = content_hasher("layer", diff_id)
    for piece in repo.merge_splitstream(layer_stream(diff_id), content_type=OCI_LAYER):
        hasher.update(piece)
        yield piece
    found = f"{diff_id.partition(':')[0]}:{hasher.hexdigest()}"
    if found != diff_id:
        raise DigestMismatchError(f"layer {diff_id}", diff_id, found)


def layer_content_async(repo: Repository, diff_id: str) -> AsyncIterator[bytes]:
    return iterate(partial(layer_content, repo, diff_id))


def layer_entries(repo: Repository, diff_id: str) -> Iterator[TarEntry]:
    """The members of a tar layer, in the order of the archive.

    Raises:
        StreamNotFoundError, SplitstreamError, TarError
    """
    with inputs_named(f"layer {diff_id}"), repo.open_stream(layer_stream(diff_id), content_type=OCI_LAYER) as reader:
        yield from read_entries(reader.chunks())


def layer_dump(repo: Repository, diff_id: str) -> Iterator[bytes]:
    """The members as lines of a dump file, in the order of the archive: no tree, so each link count is 1.

    Raises:
        StreamNotFoundError, SplitstreamError, TarError
    """
    for entry in layer_entries(repo, diff_id):
        path = b"/" + entry.path
        if entry.type is EntryType.HARDLINK:
            yield format_link(path, b"/" + entry.link)
        else:
            yield format_entry(path, _inode(entry), 1)


def layer_info(repo: Repository, diff_id: str) -> LayerInfo:
    """Read the whole stream of a layer, but none of its objects, and count.

    Raises:
        StreamNotFoundError, SplitstreamError, TarError
    """
    name = layer_stream(diff_id)
    stream_id = repo.has_stream(name)
    if stream_id is None:
        raise StreamNotFoundError(name)
    counts = _Counts()
    with inputs_named(f"layer {diff_id}"), repo.open_stream(name, stream_id, OCI_LAYER) as reader:
        chunks = counts.watch(reader.chunks())
        for entry in read_entries(chunks):
            counts.add(entry)
        for _ in chunks:  # what follows the end of the archive
            pass
        objects = len(reader.object_refs)
    size = counts.inline + counts.external
    return LayerInfo(diff_id, stream_id, size, counts.entries, objects, counts.external, counts.inline)


async def layer_info_async(repo: Repository, diff_id: str) -> LayerInfo:
    return await hop(layer_info, repo, diff_id)


class _Counts:
    def __init__(self) -> None:
        self.inline = self.external = self.entries = 0

    def watch(self, chunks: Iterator[bytes | ObjectId]) -> Iterator[bytes | ObjectId]:
        for chunk in chunks:
            self.inline += 0 if isinstance(chunk, ObjectId) else len(chunk)
            yield chunk

    def add(self, entry: TarEntry) -> None:
        self.entries += 1
        self.external += entry.size if isinstance(entry.content, ObjectId) else 0


def _inode(entry: TarEntry) -> Inode:
    """What the member would be in a tree; not for hard links, which are another name of something else."""
    mode = entry.mode | entry.type
    common = (mode, 1, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
    if entry.type is EntryType.DIRECTORY:
        return Directory(*common)
    if entry.type is EntryType.SYMLINK:
        return Symlink(*common, entry.link)
    if entry.type is not EntryType.FILE:
        return Special(*common, entry.rdev)
    if isinstance(entry.content, ObjectId):
        return ExternalFile(*common, entry.size, entry.content)
    return InlineFile(*common, entry.content or b"")
