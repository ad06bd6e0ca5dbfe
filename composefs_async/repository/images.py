"""Storing, naming and mounting EROFS images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from .._aio.hops import hop, opening_hop, write_hop
from .._repo import images, mounting, publish
from .._repo.batch import Buffer
from ..digest import ObjectId
from ..results import MountOptions, Path
from .opening import OpenRepository

__all__ = ["DEFAULT_MOUNT", "ImageOperations", "name_of"]

DEFAULT_MOUNT: Final = MountOptions()


def name_of(image: str | ObjectId) -> str:
    """Return the name by which an image is found: a reference as it is, and of an id its hexadecimal digits."""
    return image.hex() if isinstance(image, ObjectId) else image


class ImageOperations(OpenRepository):
    """EROFS images, their references and mounts.

    An image is named by its `ObjectId`, by the hexadecimal digits of that, or by a reference without ``refs/``.
    """

    def write_image(self, data: Buffer, name: str | None = None) -> ObjectId:
        """Store *data*, which is taken for an EROFS image without a look, and publish it.  Durable on return.

        Args:
            name: a reference below ``images/refs/``, which keeps the image when garbage is collected.

        Raises:
            InvalidNameError, ReadOnlyRepositoryError, VerityNotSupportedError
        """
        return images.write_image(self._state, data, name)

    async def write_image_async(self, data: Buffer, name: str | None = None) -> ObjectId:
        """Store and publish an image like `write_image`, in a worker thread; *data* must not change meanwhile."""
        return await write_hop(self._state, self.write_image, data, name)

    def import_image(self, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
        """Check an EROFS image from anywhere, in memory, then store and publish it.  Durable on return.

        Args:
            name: a reference below ``images/refs/``, or None.
            pieces: the bytes of the image, in order.

        Raises:
            ErofsError: it is no image, is damaged, refers to objects by another algorithm, or exceeds 1 GiB.
            InvalidNameError, ReadOnlyRepositoryError, VerityNotSupportedError
        """
        return images.import_image(self._state, name, pieces)

    async def import_image_async(self, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
        """Check, store and publish an image like `import_image`; *pieces* are iterated in a worker thread."""
        return await write_hop(self._state, self.import_image, name, pieces)

    def has_image(self, image: str | ObjectId) -> ObjectId | None:
        """Return the id of *image* if it is there with its object, else None."""
        return images.has_image(self._state, name_of(image))

    async def has_image_async(self, image: str | ObjectId) -> ObjectId | None:
        """Return the id of *image*, or None, like `has_image`, in a worker thread."""
        return await hop(self.has_image, image)

    def open_image(self, image: str | ObjectId) -> int:
        """Open *image* for reading; the caller closes the descriptor.  Its digest is measured like any object's.

        Raises:
            ImageNotFoundError, ObjectNotFoundError, InvalidNameError
            DigestMismatchError, VerityMissingError: what is there is not, or not safely, that image.
        """
        return images.open_image(self._state, name_of(image))

    async def open_image_async(self, image: str | ObjectId) -> int:
        """Open *image* like `open_image`, in a worker thread; the caller closes the descriptor."""
        return await opening_hop(os.close, self.open_image, image)

    def objects_for_image(self, image: str | ObjectId) -> list[ObjectId]:
        """Return the objects that *image* refers to, each once.  Reads and checks the whole image.

        Raises:
            ErofsError, and those of `open_image`.
        """
        return images.objects_for_image(self._state, name_of(image))

    async def objects_for_image_async(self, image: str | ObjectId) -> list[ObjectId]:
        """Return the objects of *image* like `objects_for_image`, in a worker thread."""
        return await hop(self.objects_for_image, image)

    def named_images(self, below: str = "") -> list[tuple[str, str]]:
        """Return sorted pairs: a reference, without *below*, and the id in hexadecimal of the image it points at."""
        return list(publish.references(self._state, "images", below))

    async def named_images_async(self, below: str = "") -> list[tuple[str, str]]:
        """Return the named images like `named_images`, in a worker thread."""
        return await hop(self.named_images, below)

    # -- mounts --------------------------------------------------------------------------------

    def mount(self, image: str | ObjectId, options: MountOptions = DEFAULT_MOUNT) -> int:
        """Mount *image* without attaching it anywhere, and return the mount's descriptor (``fsmount``).

        Closing the descriptor, which is the caller's, drops the mount; until then it serves as ``dir_fd``.

        Raises:
            ImageNotFoundError, InvalidNameError, IntegrityError, ErofsError
            MountError: the kernel refuses, in its own words; needs CAP_SYS_ADMIN.
        """
        return mounting.mount_image(self._state, name_of(image), options)

    async def mount_async(self, image: str | ObjectId, options: MountOptions = DEFAULT_MOUNT) -> int:
        """Mount *image* like `mount`, in a worker thread; the caller closes the descriptor."""
        return await opening_hop(os.close, self.mount, image, options)

    def mount_at(self, image: str | ObjectId, mountpoint: Path, options: MountOptions = DEFAULT_MOUNT) -> None:
        """Mount *image* at a directory, where it stays until `unmount`, also when the repository is closed.

        Raises:
            the errors of `mount`.
        """
        mounting.mount_at(self._state, name_of(image), mountpoint, options)

    async def mount_at_async(
        self, image: str | ObjectId, mountpoint: Path, options: MountOptions = DEFAULT_MOUNT
    ) -> None:
        """Mount *image* at a directory like `mount_at`, in a worker thread."""
        await hop(self.mount_at, image, mountpoint, options)

    @staticmethod
    def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
        """Remove a mount.  With *lazy* it disappears at once, and ends when no process uses it any more.

        Raises:
            MountError: it is in use, or nothing is mounted there.
        """
        mounting.unmount(mountpoint, lazy=lazy)

    @staticmethod
    async def unmount_async(mountpoint: Path, *, lazy: bool = False) -> None:
        """Remove a mount like `unmount`, in a worker thread."""
        await hop(ImageOperations.unmount, mountpoint, lazy=lazy)
