"""Whether a kernel image or boot entry boots what is in a repository, and why not.

Owns the questions: which image is asked for, whether it is there, complete, protected, kept, and that of a tree.  Does
not own the answers of other rooms.  Nothing is written.  `check_boot` blocks; `check_boot_async` runs it in a worker
thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._repo import objects
from .._repo.images import has_image, open_image
from ..erofs.reader.tree import IMAGE_LIMIT, image_info, image_to_tree
from ..erofs.references import image_object_ids
from ..errors import BootError, ComposefsError, FormatError
from ..oci import catalogue
from ..repository import Repository, state_of
from ..tree.inodes import Directory
from ..tree.transform import XattrFilter
from .entries import EntryText
from .explain import BootExplanation, explain_boot
from .kargs import Karg, parse_kargs
from .labels import ReadFile
from .uki import read_at, read_uki
from .variants import Variant

__all__ = ["Against", "CheckResult", "check_boot", "check_boot_async"]

_ENTRY_LIMIT: Final = 1 << 20
_NAMED_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Against:
    """The tree that the image should be of."""

    name: str
    make: Callable[[XattrFilter], Directory] = field(repr=False)
    """A new tree with these attributes, before it is transformed for booting."""
    read: ReadFile = field(repr=False)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was found out about one kernel image or boot entry."""

    source: str
    kargs: tuple[Karg, ...]
    mounted: Karg | None
    """The argument whose image would be mounted: the first one whose image is there."""
    problems: tuple[str, ...]
    """Why it would not boot, or not what it should."""
    notes: tuple[str, ...]
    """What is unusual and no problem."""
    explanation: BootExplanation | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


@operation
def check_boot(repo: Repository, source: str | os.PathLike[str], against: Against | None = None) -> CheckResult:
    """Check the unified kernel image, or entry of type 1, in the file *source*.  Reads the image that it asks for.

    Args:
        against: a tree whose bootable image it should be.

    Raises:
        OSError: the file cannot be read.
        BootError, PolicyError, and other errors of *against*.
    """
    return _Check(repo, os.fspath(source)).run(against)


@async_operation
async def check_boot_async(
    repo: Repository, source: str | os.PathLike[str], against: Against | None = None
) -> CheckResult:
    """Check a kernel image or boot entry in a worker thread; see `check_boot`."""
    return await hop(check_boot, repo, source, against)


class _Check:
    def __init__(self, repo: Repository, source: str) -> None:
        self._repo, self._state, self._source = repo, state_of(repo), source
        self._problems: list[str] = []
        self._notes: list[str] = []

    def run(self, against: Against | None) -> CheckResult:
        try:
            kargs = tuple(read_kargs(self._source))
        except BootError as error:
            return CheckResult(self._source, (), None, (str(error),), ())
        mounted = self._mounted(kargs)
        explanation = None
        if mounted is not None:
            image = self._image(mounted)
            if image is not None:
                self._complete(mounted, image)
            self._kept(mounted)
            explanation = self._equal(mounted, image, against) if against else None
        return CheckResult(self._source, kargs, mounted, tuple(self._problems), tuple(self._notes), explanation)

    def _mounted(self, kargs: tuple[Karg, ...]) -> Karg | None:
        if not kargs:
            self._problems.append("no kernel argument names an image")
            return None
        for karg in kargs:
            if karg.algorithm is self._repo.algorithm and has_image(self._state, karg.id.hex()) is not None:
                return karg
            absent = f"the image {karg.id.hex()} is not in the repository"
            if karg.algorithm is not self._repo.algorithm:
                absent += f", whose algorithm is {self._repo.algorithm.value}, not {karg.algorithm.value}"
            (self._problems if karg is kargs[-1] else self._notes).append(absent)
        return None

    def _image(self, karg: Karg) -> bytes | None:
        """The image, measured; whether it can be mounted as the argument asks for."""
        if self._repo.secure and karg.insecure:
            self._notes.append("'?' before the digest: fs-verity is not required, although the repository has it")
        if not self._repo.secure and not karg.insecure:
            self._problems.append("it requires fs-verity, which this repository does not have: '?' is missing")
        try:
            with _closing(open_image(self._state, karg.id.hex())) as fd:
                if os.fstat(fd).st_size > IMAGE_LIMIT:
                    self._problems.append(f"the image has more than {IMAGE_LIMIT} bytes")
                    return None
            image = objects.read_object(self._state, karg.id, max_size=IMAGE_LIMIT)
            version = image_info(image).version
        except (ComposefsError, OSError) as error:
            self._problems.append(str(error))
            return None
        if karg.version is not None and (version == 2) != (karg.version == 2):
            self._notes.append(f"the argument says v{karg.version}, but the image has layout {version}")
        return image

    def _complete(self, karg: Karg, image: bytes) -> None:
        try:
            ids = image_object_ids(image, self._repo.algorithm)
        except FormatError as error:
            self._problems.append(f"image {karg.id.hex()}: {error}")
            return
        bad: list[str] = []
        for object_id in ids:
            if not self._repo.secure:
                if not objects.has_object(self._state, object_id):
                    bad.append(f"object {object_id.hex()} is missing")
                continue
            try:
                os.close(objects.open_object(self._state, object_id))
            except (ComposefsError, OSError) as error:
                bad.append(str(error))
        if bad:
            shown = "; ".join(bad[:_NAMED_MAX]) + ("; …" if len(bad) > _NAMED_MAX else "")
            self._problems.append(f"{len(bad)} of {len(ids)} objects cannot be used: {shown}")

    def _kept(self, karg: Karg) -> None:
        digits = karg.id.hex()
        if any(digits == image for _, image in self._repo.named_images()):
            return
        for summary in catalogue.images(self._repo):
            if summary.error is None:
                name = summary.name if summary.without_manifest else f"@{summary.manifest_digest}"
                if karg.id in catalogue.open_image(self._repo, name).images.values():
                    return
        self._problems.append("no reference and no tagged image keeps the image: the next gc removes it")

    def _equal(self, karg: Karg, image: bytes | None, against: Against) -> BootExplanation:
        usual = Variant(version=image_info(image).version if image else 1)
        other = image_to_tree(image, self._repo.algorithm) if image else None
        found = explain_boot(against.make, against.read, karg.id, usual=usual, other=other)
        if found.variant is None or found.differences:
            self._problems.append(f"it is not the image of {against.name}: {found}")
        return found


# -- files -------------------------------------------------------------------------------------


def read_kargs(path: str) -> list[Karg]:
    """The kernel arguments that name images, of a kernel image or a boot entry.

    Raises:
        BootError: it is neither, or malformed.
        OSError
    """
    with _opened(path) as fd:
        if os.pread(fd, 2, 0) == b"MZ" or path.endswith(".efi"):
            return read_uki(read_at(fd), os.fstat(fd).st_size, path).kargs()
        size = os.fstat(fd).st_size
        if size > _ENTRY_LIMIT or not path.endswith(".conf"):
            raise BootError(path, "it is neither a unified kernel image nor a boot entry (NAME.conf)")
        text = EntryText.decode(os.pread(fd, _ENTRY_LIMIT, 0), path)
    images = [value for key, value in text.files() if key in ("efi", "uki")]
    if images and not text.options():
        place = PurePath(path).parent.parent.parent
        return read_kargs(str(place / images[0].lstrip("/")))
    try:
        return parse_kargs(text.options().encode())
    except BootError as error:
        raise BootError(path, str(error)) from None


@contextmanager
def _opened(path: str) -> Iterator[int]:
    with _closing(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        yield fd


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
