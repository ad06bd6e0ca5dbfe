"""Seals: the digests of an image's EROFS images in its manifest, or in an artifact that refers to it.

Owns the names of annotations, checking them against what is in a repository, writing them into image directories, and
signatures.  Does not own the images.  Signatures need the package ``cryptography`` (extra ``signatures``).

Annotations, of which each may have a signature under its name with ``.sig`` (base64 of PKCS#7 in DER):

====================================================  ==============================================================
``composefs.merged.erofs.v1.fsverity-ALG-BS``         the image that containers run from, in layout 1
``composefs.merged.bootable.erofs.v1.fsverity-…``     the image that a machine boots
``composefs.config.fsverity-…``                       the config, on its descriptor
``composefs.manifest.fsverity-…``                     the manifest, in an artifact only
====================================================  ==============================================================

ALG is ``sha256`` or ``sha512``, BS the binary logarithm of the block size of fs-verity, of which only 12 is made and
checked here.
A signature is over what the kernel checks when fs-verity is enabled with it (fsverity(1), ``fsverity sign``).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path as PurePath
from typing import Any, Final, Literal

from .. import fsverity
from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from ..digest import Algorithm, ObjectId
from ..erofs.writer import build_image
from ..errors import BootError, DigestMismatchError, FormatError, ImageNotFoundError, OciError
from ..oci.catalogue import OciImage, open_image
from ..oci.erofs_images import image_tree
from ..oci.platforms import Platform
from ..repository import Repository
from .layouts import imported_image
from .trees import image_boot_tree

__all__ = [
    "SealCheck",
    "Sealed",
    "Signer",
    "check_seals",
    "check_seals_async",
    "require_seals",
    "seal_layout",
    "signed_message",
]

Path = str | os.PathLike[str]
SealForm = Literal["inline", "artifact"]

ARTIFACT_TYPE: Final = "application/vnd.composefs.metadata.v1"
SIGNATURE_TYPE: Final = "application/vnd.composefs.signature.v1+pkcs7"
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_INDEX_LIMIT: Final = 4 << 20
_annotation = re.compile(
    r"composefs\.(merged\.erofs\.v1|merged\.bootable\.erofs\.v1|config)\.fsverity-(sha256|sha512)-12"
)


# -- checking ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SealCheck:
    """One annotation, and what it should say."""

    name: str
    expected: ObjectId
    """What it says."""
    found: ObjectId

    @property
    def good(self) -> bool:
        """Whether it says what is true."""
        return self.expected == self.found


@operation
def check_seals(repo: Repository, name: str) -> list[SealCheck]:
    """Compare the annotations of the image *name* that are of the repository's algorithm with what they name.

    These are the manifest's, of EROFS images, and that of the config on its descriptor.  Blocks; builds images that are
    not there.  Annotations of other algorithms and block sizes, and of single layers, are left out.

    Raises:
        OciError: an annotation is no digest.
        BootError: it has a bootable seal, and cannot be booted.
        The errors of `open_image` and `image_tree`.
    """
    image = open_image(repo, name)
    if image.config is None:
        return []
    checks = []
    for key, value in _seals(image):
        found = _annotation.fullmatch(key)
        if not found or found[2] != repo.algorithm.value:
            continue
        if not re.fullmatch(r"[0-9a-f]+", value) or len(value) != 2 * repo.algorithm.digest_size:
            raise OciError(f"manifest {image.manifest.digest}, annotation {key}", f"{value[:140]!r} is no digest")
        checks.append(SealCheck(key, ObjectId.from_hex(value), _sealed(repo, image, found[1])))
    return checks


def _seals(image: OciImage) -> Iterator[tuple[str, str]]:
    """Annotations where their subjects have them: one of the config in the manifest's own says nothing."""
    for key, value in sorted(image.manifest.config.annotations.items()):
        if key.startswith("composefs.config."):
            yield key, value
    for key, value in sorted(image.manifest.annotations.items()):
        if key.startswith("composefs.merged."):
            yield key, value


def _sealed(repo: Repository, image: OciImage, what: str) -> ObjectId:
    if what == "config":
        return fsverity.digest(image.config_raw, repo.algorithm)
    return _digest(repo, image, bootable="bootable" in what)


@async_operation
async def check_seals_async(repo: Repository, name: str) -> list[SealCheck]:
    """Check seals in a worker thread; see `check_seals`."""
    return await hop(check_seals, repo, name)


def require_seals(repo: Repository, name: str) -> list[SealCheck]:
    """Check the seals of an image, as `check_seals` does, and refuse one that does not hold.

    Raises:
        DigestMismatchError: an annotation says something else.
    """
    checks = check_seals(repo, name)
    for check in checks:
        if not check.good:
            raise DigestMismatchError(f"image {name}, seal {check.name}", check.expected.hex(), check.found.hex())
    return checks


def _digest(repo: Repository, image: OciImage, *, bootable: bool) -> ObjectId:
    if 1 in tuple(repo.metadata.formats):
        known = image.boot_image(1) if bootable else image.image(1)
        if known is not None:
            return known
    tree = image_boot_tree(repo, image) if bootable else image_tree(repo, image)
    return fsverity.digest(build_image(tree, repo.algorithm, 1), repo.algorithm)


# -- signatures --------------------------------------------------------------------------------


def signed_message(digest: ObjectId) -> bytes:
    """What a signature of fs-verity is over: ``struct fsverity_formatted_digest`` of linux/fsverity.h."""
    return b"FSVerity" + struct.pack("<HH", digest.algorithm.number, len(digest)) + bytes(digest)


class Signer:
    """Signs digests as ``fsverity sign`` does: PKCS#7, detached, without certificates and attributes.

    Raises:
        ImportError: the package ``cryptography`` is not installed.
        BootError: a file has no key or certificate in PEM, or they do not belong together.
    """

    def __init__(self, key: Path, certificate: Path) -> None:
        try:
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
            from cryptography.x509 import load_pem_x509_certificate
        except ImportError:
            raise ImportError("signing needs the package cryptography; composefs-async[signatures] has it") from None
        try:
            self._key: Any = load_pem_private_key(PurePath(key).read_bytes(), password=None)
        except (ValueError, TypeError):
            # What the library says may have parts of the key in it.
            raise BootError(f"key {os.fspath(key)}", "it is no private key in PEM without a password") from None
        try:
            self._certificate = load_pem_x509_certificate(PurePath(certificate).read_bytes())
        except ValueError:
            raise BootError(f"certificate {os.fspath(certificate)}", "it is no certificate in PEM") from None
        if self._certificate.public_key() != self._key.public_key():
            raise BootError(f"certificate {os.fspath(certificate)}", "it is of another key")

    def sign(self, digest: ObjectId) -> bytes:
        """The signature, in DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder

        hash_ = hashes.SHA512() if digest.algorithm is Algorithm.SHA512 else hashes.SHA256()
        builder = (
            PKCS7SignatureBuilder().set_data(signed_message(digest)).add_signer(self._certificate, self._key, hash_)
        )
        options = [
            PKCS7Options.Binary,
            PKCS7Options.DetachedSignature,
            PKCS7Options.NoAttributes,
            PKCS7Options.NoCerts,
        ]
        return builder.sign(Encoding.DER, options)


# -- writing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """What has been written into an image directory."""

    manifest_digest: str
    """Digest of the image's manifest; inline it is a new one."""
    artifact_digest: str | None
    annotations: dict[str, str]


async def seal_layout(
    directory: Path,
    tag: str | None = None,
    algorithm: Algorithm = Algorithm.SHA512,
    *,
    form: SealForm = "inline",
    signer: Signer | None = None,
    platform: Platform | None = None,
) -> Sealed:
    """Write the digests of an image's EROFS images into the image directory that it is in.  Durable.

    The image is imported into a temporary repository for that.  A crash leaves the directory as it was, or sealed.

    Args:
        tag: the image's, if the directory has several.
        form: ``inline`` puts annotations into the manifest, whose digest changes; ``artifact`` adds a manifest that
            refers to the image.
        signer: to sign every digest.
        platform: to take of an image of several; such an image can be sealed by an artifact only.

    Raises:
        ImageNotFoundError: there is no such image.
        OciError, BootError, PolicyError, and the errors of `oci.pull`.
    """
    place = PurePath(directory)
    reference = f"oci:{place}" + (f":{tag}" if tag is not None else "")
    async with imported_image(reference, algorithm, platform=platform) as (repo, image):
        digests = await hop(_digests, repo, image)
    return await hop(_write, place, tag, image, digests, form, signer)


def _digests(repo: Repository, image: OciImage) -> dict[str, ObjectId]:
    """By the middle of their annotations, in the order of an artifact."""
    found = {
        "manifest": fsverity.digest(image.manifest.raw, repo.algorithm),
        "config": fsverity.digest(image.config_raw, repo.algorithm),
        "merged.erofs.v1": _digest(repo, image, bootable=False),
    }
    with contextlib.suppress(BootError):  # it lacks a directory that machines need, and is no image to boot
        found["merged.bootable.erofs.v1"] = _digest(repo, image, bootable=True)
    return found


def _key(middle: str, digest: ObjectId) -> str:
    return f"composefs.{middle}.fsverity-{digest.algorithm.value}-12"


def _annotations(digests: dict[str, ObjectId], signer: Signer | None) -> dict[str, str]:
    found = {}
    for middle, digest in digests.items():
        found[_key(middle, digest)] = digest.hex()
        if signer is not None:
            found[f"{_key(middle, digest)}.sig"] = base64.b64encode(signer.sign(digest)).decode()
    return found


def _write(
    place: PurePath,
    tag: str | None,
    image: OciImage,
    digests: dict[str, ObjectId],
    form: SealForm,
    signer: Signer | None,
) -> Sealed:
    index = _read_index(place)
    if form == "artifact":
        return _write_artifact(place, index, image, digests, signer)
    at = _listed(index, image.manifest.digest, tag, place)
    document = json.loads(image.manifest.raw)
    own = _annotations({name: each for name, each in digests.items() if name.startswith("merged")}, signer)
    config = _annotations({"config": digests["config"]}, signer)
    document["annotations"] = {**_unsealed(document.get("annotations")), **own}
    document["config"]["annotations"] = {**_unsealed(document["config"].get("annotations")), **config}
    content = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    digest = _add_blob(place, content)
    index["manifests"][at] |= {"digest": digest, "size": len(content)}
    _replace(place / "index.json", json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode())
    return Sealed(digest, None, own | config)


def _unsealed(annotations: object) -> dict[str, Any]:
    """Without seals that are there already."""
    known = annotations if isinstance(annotations, dict) else {}
    return {key: value for key, value in known.items() if not re.match(r"composefs\.(merged|config|manifest)\.", key)}


def _write_artifact(
    place: PurePath, index: dict[str, Any], image: OciImage, digests: dict[str, ObjectId], signer: Signer | None
) -> Sealed:
    layers, annotations = [], {}
    for middle, digest in digests.items():
        content = b"" if signer is None else signer.sign(digest)
        key = _key(middle, digest)
        annotations[key] = digest.hex()
        layers.append(_descriptor(place, content, SIGNATURE_TYPE) | {"annotations": {key: digest.hex()}})
    subject = {
        "mediaType": image.manifest.media_type,
        "digest": image.manifest.digest,
        "size": len(image.manifest.raw),
    }
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(place, b"{}", _EMPTY_TYPE),
        "layers": layers,
        "subject": subject,
    }
    content = json.dumps(document, separators=(",", ":")).encode()
    entry = _descriptor(place, content, _MANIFEST_TYPE) | {"artifactType": ARTIFACT_TYPE}
    if all(each.get("digest") != entry["digest"] for each in index["manifests"]):
        index["manifests"].append(entry)
        _replace(place / "index.json", json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode())
    return Sealed(image.manifest.digest, str(entry["digest"]), annotations)


def _read_index(place: PurePath) -> dict[str, Any]:
    with (place / "index.json").open("rb") as file:
        content = file.read(_INDEX_LIMIT + 1)
    try:
        if len(content) > _INDEX_LIMIT:
            raise FormatError
        found = json.loads(content)
        if not isinstance(found["manifests"], list):
            raise FormatError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OciError(f"{place}/index.json", "it is no index of images") from None
    index: dict[str, Any] = found
    return index


def _listed(index: dict[str, Any], digest: str, tag: str | None, place: PurePath) -> int:
    """Where the manifest stands in the index; one inside of another index cannot be changed."""
    for at, entry in enumerate(index["manifests"]):
        name = (entry.get("annotations") or {}).get(_REF_NAME)
        if entry.get("digest") == digest and (tag is None or name in (tag, None)):
            return at
    raise ImageNotFoundError(
        f"oci:{place}" + (f":{tag}" if tag else ""),
        reason="index.json does not list its manifest itself; use an artifact",
    )


def _descriptor(place: PurePath, content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _add_blob(place, content), "size": len(content)}


def _add_blob(place: PurePath, content: bytes) -> str:
    digits = sha256(content).hexdigest()
    path = place / "blobs" / "sha256" / digits
    if not path.exists():
        _replace(path, content)
    return f"sha256:{digits}"


def _replace(path: PurePath, content: bytes) -> None:
    """Write a file whole, durably."""
    temporary = path.parent / f".tmp-{secrets.token_hex(6)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
