"""Storing, naming and mounting EROFS images."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .._aio.hops import hop, opening_hop, write_hop
from .._repo import images, mounting, publish
from .._repo.batch import Buffer
from ..digest import ObjectId
from .opening import OpenRepository, Path

__all__ = ["ImageOperations"]


class ImageOperations(OpenRepository):
    """Images, their references and mounts."""

    def write_image(self, data: Buffer, name: str | None = None) -> ObjectId:
        """Store *data*, which is taken for an EROFS image without a look, and publish it.  Durable on return.

        Args:
            name: below ``images/refs/``, which keeps the image when garbage is collected.
        """
        return images.write_image(self._state, data, name)

    async def write_image_async(self, data: Buffer, name: str | None = None) -> ObjectId:
        """The same; *data* must not change meanwhile."""
        return await write_hop(self._state, self.write_image, data, name)

    def import_image(self, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
        """The same for an image from anywhere, which is checked, in memory, before anything is stored.

        Raises:
            ErofsError: it is no image, is damaged, refers to objects by another algorithm, or exceeds 1 GiB.
        """
        return images.import_image(self._state, name, pieces)

    async def import_image_async(self, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
        """The same; *pieces* are taken in a worker thread."""
        return await write_hop(self._state, self.import_image, name, pieces)

    def has_image(self, name: str) -> ObjectId | None:
        """The id of the image *name* (its id in hexadecimal, or a reference) if it is there with its object."""
        return images.has_image(self._state, name)

    async def has_image_async(self, name: str) -> ObjectId | None:
        return await hop(self.has_image, name)

    def open_image(self, name: str) -> int:
        """A read-only descriptor of the image *name*, which the caller closes; measured like every object.

        Raises:
            ImageNotFoundError, ObjectNotFoundError, InvalidNameError
            DigestMismatchError, VerityMissingError: what is there is not, or not safely, that image.
        """
        return images.open_image(self._state, name)

    async def open_image_async(self, name: str) -> int:
        return await opening_hop(os.close, self.open_image, name)

    def objects_for_image(self, name: str) -> list[ObjectId]:
        """The objects that the image *name* refers to, each once; reads and checks the whole image.

        Raises:
            ErofsError, and those of `open_image`.
        """
        return images.objects_for_image(self._state, name)

    async def objects_for_image_async(self, name: str) -> list[ObjectId]:
        return await hop(self.objects_for_image, name)

    def named_images(self, below: str = "") -> list[tuple[str, str]]:
        """Sorted pairs of a reference, without *below*, and the id in hexadecimal of the image it leads to."""
        return list(publish.references(self._state, "images", below))

    async def named_images_async(self, below: str = "") -> list[tuple[str, str]]:
        return await hop(self.named_images, below)

    # -- mounts --------------------------------------------------------------------------------

    def mount(
        self,
        name: str,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> int:
        """A mount of the image *name*, an id or a reference, that is attached nowhere.

        Closing the descriptor, which is the caller's, drops the mount; until then it serves as ``dir_fd``.

        Args:
            upper: a directory for what is changed in the mounted tree.
            work: an empty directory on the same file system, for the kernel.
            read_write: allow changes; they go to *upper*.
            idmap: a descriptor of the user namespace that maps the owners of files.

        Raises:
            ImageNotFoundError, InvalidNameError, IntegrityError, ErofsError
            MountError: the kernel refuses, in its own words; needs CAP_SYS_ADMIN.
        """
        return mounting.mount_image(self._state, name, upper=upper, work=work, read_write=read_write, idmap=idmap)

    async def mount_async(
        self,
        name: str,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> int:
        return await opening_hop(os.close, self.mount, name, upper=upper, work=work, read_write=read_write, idmap=idmap)

    def mount_at(
        self,
        name: str,
        mountpoint: Path,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> None:
        """Mount the image *name* at a directory.  It stays until `unmount`, also when the repository is closed."""
        mounting.mount_at(self._state, name, mountpoint, upper=upper, work=work, read_write=read_write, idmap=idmap)

    async def mount_at_async(
        self,
        name: str,
        mountpoint: Path,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> None:
        await hop(self.mount_at, name, mountpoint, upper=upper, work=work, read_write=read_write, idmap=idmap)

    @staticmethod
    def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
        """Remove a mount; *lazy* takes it out of sight at once, and ends it when nobody uses it any more.

        Raises:
            MountError: it is in use, or nothing is mounted there.
        """
        mounting.unmount(mountpoint, lazy=lazy)

    @staticmethod
    async def unmount_async(mountpoint: Path, *, lazy: bool = False) -> None:
        await hop(ImageOperations.unmount, mountpoint, lazy=lazy)
