"""``docker-overlay2:[DIR]NAME``: images in Docker's own store of the driver overlay2, read from disk, verified.

Owns the layout below ``/var/lib/docker`` (moby, daemon/internal/image and layer).  Docker has no lock that others could
take: what is removed meanwhile is missed, and what comes out is verified in any case.  It needs root, as Docker does.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path

from ...._aio.hops import hop
from ....digest import sha256_content_digest
from ....errors import ImageNotFoundError, InvalidNameError, OciError, TransportError
from ...documents import Descriptor, ImageConfig, parse_config, verify_content
from ...jsondoc import brief, parse_json
from ...limits import Limits
from ...platforms import Candidate, Platform, choose
from ..base import BlockingBlob, ResolvedImage
from ..docker_manifest import made_image
from ..familiar import normalized_name
from ..resolving import listing
from ..store import DirectoryStore
from .layers import StoredLayer, opened_layer, recipe_of
from .recipe import recipe_size

__all__ = ["DockerOverlaySource", "check_reference", "open_reference"]

_ROOT = "/var/lib/docker"
_REFERENCE = re.compile(r"(?:\[(?P<root>/[^\]]*)\])?(?P<image>[^\[\]]+)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CACHE_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,127}")
_SMALL = 4096  # bytes of a file with one value
_NAMES_LIMIT = 64 << 20


def check_reference(reference: str) -> None:
    """Check the spelling of ``docker-overlay2:[DIR]NAME``, where NAME may be ``sha256:`` and an image id.

    Raises:
        InvalidNameError: *reference* is not spelled so.
    """
    _parse(reference)


def _parse(reference: str) -> tuple[Path, str]:
    found = _REFERENCE.fullmatch(reference.partition(":")[2])
    if found is None:
        raise InvalidNameError(reference, "not of the form docker-overlay2:[DIR]NAME")
    if not _DIGEST.fullmatch(found["image"]) and normalized_name(found["image"]) is None:
        raise InvalidNameError(reference, f"{found['image']!r} is neither a name of an image nor the id of one")
    return Path(found["root"] or _ROOT), found["image"]


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[DockerOverlaySource]:
    """An image in Docker's store.

    Raises:
        InvalidNameError: as `check_reference`.
    """
    root, image = _parse(reference)
    yield DockerOverlaySource(root, image, limits)


class DockerOverlaySource:
    """One image of Docker's store, as an `ImageSource`; its manifest is made of its config.

    Args:
        root: Docker's data root.
        image: a name, or ``sha256:`` and the image id.
    """

    def __init__(self, root: Path, image: str, limits: Limits) -> None:
        self._root, self._image, self._limits = root, image, limits
        self._files = DirectoryStore(root / "image" / "overlay2")
        self._layers: dict[str, StoredLayer] = {}

    @property
    def _reference(self) -> str:
        return f"docker-overlay2:[{self._root}]{self._image}"

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        """Find the image and read its config, like `ImageSource.resolve`; *digest* is that of the made manifest."""
        image = await hop(self._resolve, tag or self._image, platform)
        if digest not in (None, image.manifest.digest):
            raise ImageNotFoundError(f"{self._reference}@{digest}")
        return image

    def open_blob(self, descriptor: Descriptor) -> AbstractAsyncContextManager[BlockingBlob]:
        """Open a layer of the resolved image, like `ImageSource.open_blob`."""
        layer = self._layers.get(descriptor.digest)
        if layer is None:
            raise TransportError(f"{self._reference} has no layer {descriptor.digest}")
        return opened_layer(layer, descriptor.size, self._limits)

    def _resolve(self, name: str, platform: Platform | None) -> ResolvedImage:
        if not self._files.directory.is_dir():
            raise ImageNotFoundError(self._reference, reason=self._no_store())
        digest = name if _DIGEST.fullmatch(name) else self._image_id(name)
        path = f"imagedb/content/sha256/{digest.partition(':')[2]}"
        if not self._files.has(path):
            raise ImageNotFoundError(self._reference, reason="there is no image of that id")
        raw = self._files.read(path, self._limits.document_size)
        verify_content(f"config {self._files.path(path)}", raw, digest)
        config = parse_config(raw, digest, limit=self._limits.document_size)
        if platform is not None:
            choose([Candidate(digest, config.platform)], platform, what=self._reference, tagged=True)
        layers = self._chain(config)
        self._layers.update((layer.diff_id, layer) for layer in layers)
        return made_image(self._reference, config, [self._size(layer) for layer in layers])

    def _no_store(self) -> str:
        if (self._root / "containerd").is_dir():
            return "that Docker keeps its images in containerd's store: use docker-daemon:, or docker save"
        drivers = sorted(path.name for path in (self._root / "image").glob("*"))
        return f"its driver is {', '.join(drivers)}" if drivers else f"there is no store of Docker at {self._root}"

    def _image_id(self, name: str) -> str:
        path = self._files.path("repositories.json")
        document = parse_json(self._files.read("repositories.json", _NAMES_LIMIT), path, limit=_NAMES_LIMIT)
        repositories = document.child("Repositories")
        names: dict[str, str] = {}
        for repository in repositories.members if repositories is not None else ():
            names |= repositories.texts(repository) if repositories is not None else {}
        wanted = normalized_name(name)
        for known, digest in names.items():
            if normalized_name(known) == wanted and _DIGEST.fullmatch(digest):
                return digest
        shown = listing(sorted(brief(known) for known in names if "@" not in known))
        raise ImageNotFoundError(self._reference, reason=f"there are {shown}" if shown else "the store has no images")

    def _chain(self, config: ImageConfig) -> list[StoredLayer]:
        """The layers, lowest first, by the chain ids that their diff_ids make."""
        found: list[StoredLayer] = []
        roots: list[Path] = []
        chain_id = ""
        for diff_id in config.diff_ids:
            if not _DIGEST.fullmatch(diff_id):
                raise OciError(self._reference, f"Docker has no layers like {diff_id}")
            chain_id = sha256_content_digest(f"{chain_id} {diff_id}".encode()) if chain_id else diff_id
            place = f"layerdb/sha256/{chain_id.partition(':')[2]}"
            if not self._files.has(place):
                raise OciError(self._reference, f"its layer {diff_id} is missing, or has been removed meanwhile")
            cache_id = self._files.read(f"{place}/cache-id", _SMALL).decode(errors="replace").strip()
            if not _CACHE_ID.fullmatch(cache_id):
                raise OciError(self._reference, f"{brief(cache_id)} is no name of a layer's directory")
            roots.insert(0, self._root / "overlay2" / cache_id / "diff")
            recipe = self._files.file(f"{place}/tar-split.json.gz")
            found.append(StoredLayer(diff_id, recipe, tuple(roots), _unlocked))
        return found

    def _size(self, layer: StoredLayer) -> int:
        with recipe_of(layer) as blob:
            return recipe_size(blob, layer.name, self._limits)


def _unlocked(check: Callable[[], object]) -> AbstractContextManager[None]:
    return nullcontext()
