"""Every name that OCI content has inside a repository, and the syntax of ``oci:DIR[:TAG]``; no I/O.

Owns the spelling of stream names, tags and named references, and the checks that keep them inside their
directories.  Does not own what the documents say (`documents`), names that are not OCI's, nor publishing
them (`_repo.names`), nor the content types of streams (`splitstream`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .digest import check_content_digest
from .errors import FormatError, InvalidNameError, OciError

__all__ = [
    "BOOT_IMAGE_REF",
    "BOOT_IMAGE_V1_REF",
    "IMAGE_REF",
    "IMAGE_REFS",
    "IMAGE_V1_REF",
    "KEEP_USER_XATTRS",
    "LAYER_STREAMS",
    "NAME_LIMIT",
    "REFERRERS",
    "TAGS",
    "LayoutReference",
    "blob_stream",
    "boot_image_ref",
    "check_tag",
    "config_ref",
    "config_stream",
    "decode_tag",
    "digest_of_manifest_stream",
    "encode_tag",
    "image_ref",
    "layer_stream",
    "manifest_stream",
    "parse_layout_reference",
    "referrer_reference",
    "referrers_first",
    "tag_reference",
]

NAME_LIMIT = 255
"""Bytes of one file name (linux/limits.h, NAME_MAX)."""

TAGS = "oci"
"""The directory below ``streams/refs`` that holds one reference for each tag."""
REFERRERS = "oci-referrers"
"""Where references to what refers to manifests are: a directory for each subject, and in it one for each referrer."""

LAYER_STREAMS = "oci-layer-"
"""What the names of streams of layers begin with."""
_CONFIG_STREAMS = "oci-config-"
_MANIFEST_STREAMS = "oci-manifest-"

IMAGE_REF = "composefs.image"
"""Named reference of a config stream to the image in format V2."""
IMAGE_V1_REF = "composefs.image.v1"
"""Named reference of a config stream to the image in format V0 or V1."""
BOOT_IMAGE_REF = "composefs.image.boot"
BOOT_IMAGE_V1_REF = "composefs.image.boot.v1"
KEEP_USER_XATTRS = ".xattrs=keep-user-xattrs"
"""What follows a boot image's reference when the image was made with all extended attributes."""
IMAGE_REFS = frozenset(
    {IMAGE_REF, IMAGE_V1_REF}
    | {boot + suffix for boot in (BOOT_IMAGE_REF, BOOT_IMAGE_V1_REF) for suffix in ("", KEEP_USER_XATTRS)}
)
"""All named references that lead to an image; every other one leads to a stream."""

_POSITION = re.compile(r"@[0-9]{1,9}")
_DIGEST_SUFFIX = re.compile(r"(?P<directory>.*)@(?P<digest>sha(?:256|384|512):[^/]*)", re.DOTALL)
_ESCAPES = {"%2F": "/", "%25": "%"}


# -- streams -----------------------------------------------------------------------------------


def layer_stream(diff_id: str) -> str:
    """The stream of a layer, by the digest of the uncompressed tar; in an artifact by the layer's own digest."""
    return _stream("layer", diff_id)


def config_stream(digest: str) -> str:
    """Return the name of the stream that holds the config with *digest*."""
    return _stream("config", digest)


def manifest_stream(digest: str) -> str:
    """Return the name of the stream that holds the manifest with *digest*."""
    return _stream("manifest", digest)


def blob_stream(digest: str) -> str:
    """Return the name of the stream that holds the blob with *digest*."""
    return _stream("blob", digest)


def referrers_first(name: str) -> int:
    """A key to sort streams by: manifests refer to configs and layers, configs to layers; others to any of them."""
    return 1 if name.startswith(_CONFIG_STREAMS) else 2 if name.startswith(LAYER_STREAMS) else 0


def digest_of_manifest_stream(name: str) -> str | None:
    """The digest in the name of a manifest's stream; None if *name* is anything else."""
    if not name.startswith(_MANIFEST_STREAMS):
        return None
    try:
        return check_content_digest(name.removeprefix(_MANIFEST_STREAMS))
    except FormatError:
        return None


def _stream(kind: str, digest: str) -> str:
    name = f"oci-{kind}-{check_content_digest(digest)}"
    return _check_file_name(name, name)


# -- tags --------------------------------------------------------------------------------------


def encode_tag(tag: str) -> str:
    """The file name of a tag; only ``%`` and ``/`` are escaped.  Any string is accepted: see `check_tag`."""
    return tag.replace("%", "%25").replace("/", "%2F")


def decode_tag(name: str) -> str:
    """The tag that a file name stands for; an escape that `encode_tag` never writes is kept as it is."""
    return re.sub("%2F|%25", lambda found: _ESCAPES[found[0]], name)


def check_tag(tag: str) -> str:
    """Return *tag* if it can name an image.

    Raises:
        InvalidNameError: it is empty, ``.`` or ``..``, starts with ``@`` (which marks a digest), or its
            file name would be longer than 255 bytes.
    """
    if tag.startswith("@"):
        raise InvalidNameError(tag, "a leading '@' is reserved for digests")
    _check_file_name(encode_tag(tag), tag)
    return tag


def tag_reference(tag: str) -> str:
    """The reference below ``streams/refs`` of a tag.

    Raises:
        InvalidNameError: as `check_tag`.
    """
    return f"{TAGS}/{encode_tag(check_tag(tag))}"


def referrer_reference(subject: str, artifact: str) -> str:
    """The reference below ``streams/refs`` that records that the manifest *artifact* refers to *subject*."""
    names = (_check_file_name(encode_tag(check_content_digest(digest)), digest) for digest in (subject, artifact))
    return "/".join((REFERRERS, *names))


def _check_file_name(file_name: str, name: str) -> str:
    """Check the file name that *name* has; neither can contain a slash here."""
    try:
        length = len(file_name.encode())
    except UnicodeEncodeError:
        raise InvalidNameError(name, "it is not valid UTF-8") from None
    if not file_name:
        raise InvalidNameError(name, "it is empty")
    if file_name in (".", ".."):
        raise InvalidNameError(name, f"{file_name!r} is not a name")
    if "\0" in file_name:
        raise InvalidNameError(name, "it contains NUL")
    if length > NAME_LIMIT:
        raise InvalidNameError(name, f"its file name has {length} bytes, more than {NAME_LIMIT}")
    return file_name


# -- named references --------------------------------------------------------------------------


def config_ref(digest: str) -> str:
    """The named reference of a manifest stream to its config stream.  Layers go by their diff_id alone."""
    return f"config:{check_content_digest(digest)}"


def image_ref(version: int) -> str:
    """The named reference to the image in EROFS format *version* (0, 1 or 2)."""
    return IMAGE_REF if version == 2 else IMAGE_V1_REF


def boot_image_ref(version: int, *, keep_user_xattrs: bool = False) -> str:
    """The named reference to the bootable form of the image in EROFS format *version* (0, 1 or 2)."""
    boot = BOOT_IMAGE_REF if version == 2 else BOOT_IMAGE_V1_REF
    return boot + (KEEP_USER_XATTRS if keep_user_xattrs else "")


# -- image directories -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image in an OCI image directory: by tag, digest or position, or, with none of them, the only one that fits."""

    directory: str
    tag: str | None = None
    digest: str | None = None
    position: int | None = None
    """Number of an entry in index.json, from 0 (containers-transports(5), ``oci:PATH:@INDEX``)."""

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        position = "" if self.position is None else f":@{self.position}"
        return f"oci:{self.directory}{tag}{position}" + ("" if self.digest is None else f"@{self.digest}")


def parse_layout_reference(text: str, is_directory: Callable[[str], bool] = lambda _: False) -> LayoutReference:
    """Parse ``oci:DIR``, ``oci:DIR:TAG``, ``oci:DIR:@INDEX`` or ``oci:DIR@sha256:…``.

    A tag may hold colons and slashes, as the whole names do that other programs store, and so may the name of a
    directory.  So the directory ends at the first colon, or at the end, where *is_directory* says that there is one.

    Args:
        is_directory: whether a path leads to an image directory.  Without it, or when nothing is one, the tag is what
            follows the last colon, unless that contains a slash: ``oci:a:b/`` has none.

    Raises:
        OciError: *text* is anything else.
    """
    transport, _, rest = text.partition(":")
    if transport != "oci":
        raise OciError(text, "not a reference to an image directory, which is spelled oci:DIR[:TAG]")
    for colon in re.finditer(":", rest):
        if is_directory(rest[: colon.start()]):
            return _tagged(text, rest[: colon.start()], rest[colon.end() :])
    digest = None
    if found := _DIGEST_SUFFIX.fullmatch(rest):
        rest, digest = found["directory"], _digest_of_reference(text, found["digest"])
    directory, separator, tag = rest.rpartition(":")
    if not separator or "/" in tag or is_directory(rest):
        directory, separator, tag = rest, "", ""
    if not directory:
        raise OciError(text, "the directory is missing: oci:DIR[:TAG]")
    if not separator:
        return LayoutReference(directory, None, digest)
    if digest and tag:
        raise OciError(text, "give a tag or a digest, not both")
    return _tagged(text, directory, tag)


def _tagged(text: str, directory: str, tag: str) -> LayoutReference:
    if not tag:
        raise OciError(text, "the tag after the last ':' is empty")
    if not tag.startswith("@"):
        return LayoutReference(directory, tag)
    if not _POSITION.fullmatch(tag):
        raise OciError(text, f"{tag[1:]!r} is no position in index.json, which counts from 0")
    return LayoutReference(directory, position=int(tag[1:]))


def _digest_of_reference(text: str, digest: str) -> str:
    try:
        return check_content_digest(digest)
    except FormatError as error:
        raise OciError(text, str(error)) from None
