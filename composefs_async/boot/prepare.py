"""A machine made ready to boot an image: files on its boot partition, and the state of the deployment.

Owns the order, in which every step leaves a machine that boots what it booted before: the bootable image and the
reference that keeps it from garbage collection, the state, kernels, and last the entries.  Undoing goes the other way.
Does not own which files these are (`plan`), nor writing them (`bootfiles`, `state`).

`prepare_boot` and `unprepare_boot` block; ``x_async`` runs ``x`` in a worker thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as PurePath
from typing import Final

from .. import fsverity
from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._repo import objects
from ..digest import ObjectId
from ..erofs.writer import build_image
from ..errors import BootError, FormatError, ObjectNotFoundError
from ..oci.catalogue import OciImage, open_image
from ..oci.erofs_images import image_tree
from ..repository import Repository, state_of
from ..tree.inodes import Directory, ExternalFile
from ..tree.transform import XattrFilter
from .bootfiles import OpenFile, check_paths, check_space, differing, remove_files, write_files
from .entries import EntryText, find_entries
from .images import ensure_boot_image
from .kargs import parse_kargs
from .plan import BootLayout, BootPlan, Request, plan_entries
from .reading import object_reader
from .sharing import share_kernels
from .state import Origin, make_state, state_path
from .trees import image_boot_tree
from .uki import read_at, read_uki

__all__ = [
    "PreparedBoot",
    "UnpreparedBoot",
    "prepare_boot",
    "prepare_boot_async",
    "unprepare_boot",
    "unprepare_boot_async",
]

Path = str | os.PathLike[str]

_REFERENCES: Final = "boot"
"""The directory below ``images/refs`` with one reference for each prepared image."""
_ENTRIES: Final = "loader/entries"
_CONF_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PreparedBoot:
    """What is there, or would be."""

    image: ObjectId
    karg: str
    """The kernel argument that names it."""
    reference: str
    """What keeps it, below ``images/refs``."""
    files: tuple[tuple[str, int], ...]
    """Paths below the boot partition, with sizes in bytes."""
    written: tuple[str, ...]
    """Files that were not there, or different."""
    state: str
    """The directory of the deployment."""
    boot_digest: str
    """The SHA-256 of kernel and initrd, in hexadecimal; empty if there is no initrd."""
    warnings: tuple[str, ...]
    dry_run: bool


@operation
def prepare_boot(
    repo: Repository,
    name: str,
    bootdir: Path = "/boot",
    *,
    entry_id: str | None = None,
    cmdline: Sequence[str] = (),
    layout: BootLayout = "bls",
    all_entries: bool = False,
    sysroot: Path | None = None,
    container_reference: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> PreparedBoot:
    """Let a machine boot the image *name*, a tag or ``@DIGEST``.  Durable; a second call changes nothing.

    The bootable image is made and referred to first, so that no garbage collection takes what an entry names.  A crash
    leaves a machine that boots what it booted before, or this too.

    Args:
        bootdir: where the boot partition is mounted.
        entry_id: the name of the entry, in place of that of the image or the kernel's release.
        cmdline: further kernel arguments; one takes the place of another with its key.
        layout: ``bls`` as composefs-rs, or ``bootc``.
        all_entries: every boot entry of the image, not only the first.
        sysroot: the directory for ``state``; that which the repository is in by default.
        container_reference: what bootc should call the image; *name* by default.
        force: take a unified kernel image that requires fs-verity where the repository does not have it, or the
            other way round.
        dry_run: only tell what would be written.

    Raises:
        BootError: the image cannot be booted, or not in this way.
        PolicyError, OciError, NotFoundError, IntegrityError, ReadOnlyRepositoryError
        OSError: the boot partition is full or read-only, found out before anything is written; or it cannot be written.
    """
    bootdir = os.fspath(bootdir)
    top = os.path.dirname(os.path.abspath(repo.path)) if sysroot is None else os.path.abspath(sysroot)
    _check_id(entry_id)
    _check_arguments(cmdline)
    image, boot_id = _boot_image(repo, name, dry_run=dry_run)
    request = Request(
        boot_id,
        repo.metadata.formats.default,
        not repo.secure,
        layout,
        entry_id,
        tuple(cmdline),
        all_entries,
        force,
    )
    open_file = _opener(repo)
    root = image_tree(repo, image, XattrFilter.ALLOWLIST_ONLY)
    plan = _planned(repo, root, request, bootdir, top)
    wanted = differing(bootdir, plan.files, open_file)
    check_space(bootdir, wanted)
    place = state_path(top, boot_id.hex())
    if layout == "bootc" and os.path.lexists(place) and not os.path.lexists(f"{place}/{boot_id.hex()}.origin"):
        plan.warnings.append(f"{place} is there in another form than bootc's, and stays as it is")
    if not dry_run:
        _refer(repo, boot_id)
        origin = Origin(container_reference or name, plan.boot_type, plan.boot_digest, image.manifest.digest)
        boot_root = image_boot_tree(repo, image) if layout == "bootc" and not os.path.lexists(place) else root
        make_state(top, boot_id.hex(), layout, boot_root, open_file, origin)
        write_files(bootdir, plan.files, open_file)
    return PreparedBoot(
        boot_id,
        request.karg,
        f"{_REFERENCES}/{boot_id.hex()}",
        tuple((file.path, file.size) for file in plan.files),
        tuple(file.path for file in wanted),
        place,
        plan.boot_digest,
        tuple(plan.warnings),
        dry_run,
    )


def _planned(repo: Repository, root: Directory, request: Request, bootdir: str, top: str) -> BootPlan:
    """What is to be written for the entries of the tree *root*, with paths that a boot partition can have."""
    entries = find_entries(root, object_reader(state_of(repo)))
    plan = plan_entries(entries, request, root, _opener(repo))
    if request.layout == "bootc":
        share_kernels(plan, bootdir, top, request.image.hex())
    check_paths(plan.files)
    return plan


def _refer(repo: Repository, boot_id: ObjectId) -> None:
    """Keep the image from garbage collection by its reference, durably."""
    name = boot_id.hex()
    if dict(repo.named_images(_REFERENCES)).get(name) != name:
        repo.add_reference("images", f"{_REFERENCES}/{name}", name, replace=True)


@async_operation
async def prepare_boot_async(
    repo: Repository,
    name: str,
    bootdir: Path = "/boot",
    *,
    entry_id: str | None = None,
    cmdline: Sequence[str] = (),
    layout: BootLayout = "bls",
    all_entries: bool = False,
    sysroot: Path | None = None,
    container_reference: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> PreparedBoot:
    """Let a machine boot an image, in a worker thread; see `prepare_boot`."""
    return await hop(
        prepare_boot,
        repo,
        name,
        bootdir,
        entry_id=entry_id,
        cmdline=cmdline,
        layout=layout,
        all_entries=all_entries,
        sysroot=sysroot,
        container_reference=container_reference,
        force=force,
        dry_run=dry_run,
    )


def _check_id(entry_id: str | None) -> None:
    if entry_id is not None and (not entry_id or "/" in entry_id or entry_id.startswith(".")):
        raise BootError(f"entry id {entry_id!r}", "it is no name without slashes, and without a dot before it")


def _check_arguments(cmdline: Sequence[str]) -> None:
    for argument in cmdline:
        if not argument or not argument.isprintable():
            raise BootError(f"kernel argument {argument!r}", "it is empty, or has characters that cannot be printed")
        if argument.startswith(("composefs=", "composefs.digest=")):
            raise BootError(f"kernel argument {argument!r}", "which image is booted is not to be chosen here")


def _boot_image(repo: Repository, name: str, *, dry_run: bool) -> tuple[OciImage, ObjectId]:
    """The image, and the id of its bootable form in the layout that the repository prefers."""
    version = repo.metadata.formats.default
    if not dry_run:
        image = ensure_boot_image(repo, name)
        found = image.boot_image(version)
        assert found is not None
        return image, found
    image = open_image(repo, name)
    found = image.boot_image(version)
    if found is None:
        content = build_image(image_boot_tree(repo, image), repo.algorithm, version)
        found = fsverity.digest(content, repo.algorithm)
    return image, found


def _opener(repo: Repository) -> OpenFile:
    def open_file(inode: ExternalFile) -> int:
        if inode.digest is None:
            raise ObjectNotFoundError("of a file without content")
        return objects.open_object(state_of(repo), ObjectId(inode.digest))

    return open_file


# -- the other way -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnpreparedBoot:
    """What has gone, or would go."""

    image: ObjectId
    removed: tuple[str, ...]
    """Paths below the boot partition."""
    reference: bool
    """Whether there was a reference that kept the image."""
    dry_run: bool


@operation
def unprepare_boot(repo: Repository, name: str, bootdir: Path = "/boot", *, dry_run: bool = False) -> UnpreparedBoot:
    """Take back what `prepare_boot` did for the image *name*, but for the state, which may be of value.  Durable.

    Entries that name the image go first, then kernels that no other entry names, and last the reference; so no crash
    leaves an entry that leads nowhere.

    Args:
        name: a tag, ``@DIGEST``, or the id of the bootable image.

    Raises:
        BootError: the image has never been made bootable.
        NotFoundError, OciError
        OSError: the boot partition cannot be read or written.
    """
    bootdir = os.fspath(bootdir)
    image = _image_id(repo, name)
    paths = _files_of(bootdir, image)
    reference = f"{_REFERENCES}/{image.hex()}"
    if dry_run:
        kept = image.hex() in dict(repo.named_images(_REFERENCES))
        return UnpreparedBoot(image, tuple(paths), kept, dry_run)
    removed = remove_files(bootdir, paths)
    return UnpreparedBoot(image, tuple(removed), repo.remove_reference("images", reference), dry_run)


@async_operation
async def unprepare_boot_async(
    repo: Repository, name: str, bootdir: Path = "/boot", *, dry_run: bool = False
) -> UnpreparedBoot:
    """Take back `prepare_boot` in a worker thread; see `unprepare_boot`."""
    return await hop(unprepare_boot, repo, name, bootdir, dry_run=dry_run)


def _image_id(repo: Repository, name: str) -> ObjectId:
    with contextlib.suppress(FormatError):
        return ObjectId.from_hex(name).require(repo.algorithm)
    found = open_image(repo, name).boot_image(repo.metadata.formats.default)
    if found is None:
        raise BootError(f"image {name}", "it has no bootable image, so that nothing can have been prepared")
    return found


def _files_of(bootdir: str, image: ObjectId) -> list[str]:
    """Entries that name *image*, then what they alone name, and kernel images that boot it."""
    own: list[str] = []
    named: list[str] = []
    others: set[str] = set()
    for path, text in _entry_files(bootdir):
        files = [value.lstrip("/") for _, value in text.files()]
        ukis = [value for value in files if value.endswith(".efi") and _boots(bootdir, value, image)]
        if _names(text.options().encode(errors="surrogateescape"), image) or ukis:
            own.append(path)
            named += files
        else:
            others.update(files)
    found = _kernel_images(bootdir, image)
    wanted = dict.fromkeys([*named, *found])
    return own + [path for path in wanted if path not in others and _is_inside(path)]


def _entry_files(bootdir: str) -> list[tuple[str, EntryText]]:
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(os.path.join(bootdir, _ENTRIES))):
            path = f"{_ENTRIES}/{name}"
            if name.endswith(".conf"):
                with open(os.path.join(bootdir, path), "rb") as file:
                    content = file.read(_CONF_LIMIT)
                with contextlib.suppress(BootError):
                    found.append((path, EntryText.decode(content, path)))
    return found


def _names(command_line: bytes, image: ObjectId) -> bool:
    try:
        return any(karg.id == image for karg in parse_kargs(command_line))
    except BootError:
        return False


def _boots(bootdir: str, path: str, image: ObjectId) -> bool:
    try:
        fd = os.open(os.path.join(bootdir, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return any(karg.id == image for karg in read_uki(read_at(fd), os.fstat(fd).st_size, path).kargs())
    except (BootError, OSError):
        return False
    finally:
        os.close(fd)


def _kernel_images(bootdir: str, image: ObjectId) -> list[str]:
    """Below EFI/Linux, with their addons."""
    found: list[str] = []
    for above, _, names in os.walk(os.path.join(bootdir, "EFI/Linux")):
        for name in sorted(names):
            path = os.path.relpath(os.path.join(above, name), bootdir)
            if name.endswith(".efi") and _boots(bootdir, path, image):
                extra = PurePath(bootdir, f"{path}.extra.d")
                found += [path, *(str(each.relative_to(bootdir)) for each in sorted(extra.glob("*.efi")))]
    return found


def _is_inside(path: str) -> bool:
    return bool(path) and all(name not in ("", ".", "..") for name in path.split("/"))
