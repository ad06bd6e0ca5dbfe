"""Repositories to be damaged, and ways to do it; shared by the tests of repair."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio

from composefs_async.digest import Algorithm
from composefs_async.oci import Platform, pull
from composefs_async.oci.catalogue import open_image
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
PLATFORM = Platform("linux", "amd64")
CASES = ("basic", "one", "artifact")


def make(path: Path, algorithm: Algorithm = Algorithm.SHA256, version: int = 1) -> Path:
    """A repository with two images that share something, an artifact, and an image with a name of its own."""
    with Repository.init(path, algorithm=algorithm, erofs_version=version, insecure=True) as repo:
        for case in CASES:
            anyio.run(partial(pull, repo, f"oci:{LAYOUTS}/{case}", tag=case, platform=PLATFORM))
        image_id = open_image(repo, "one").image(version)
        assert image_id is not None
        repo.write_image(repo.read_object(image_id), "an/image")
    return path


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))


def content(path: Path) -> dict[str, bytes | str]:
    """Every file and link by its path, except for what only upkeep knows."""
    found: dict[str, bytes | str] = {}
    for each in path.rglob("*"):
        name = str(each.relative_to(path))
        if not name.startswith(".composefs-async"):
            if each.is_symlink():
                found[name] = os.readlink(each)
            elif each.is_file():
                found[name] = each.read_bytes()
    return found


def objects(path: Path) -> list[str]:
    """Paths relative to the repository."""
    return sorted(str(each.relative_to(path)) for each in (path / "objects").rglob("*") if each.is_file())


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    """Change one bit in the middle; an empty file gets a byte."""
    found = bytearray(path.read_bytes() or b"x")
    found[len(found) // 2] ^= 1
    path.unlink()
    path.write_bytes(found)


def cut(path: Path) -> None:
    found = path.read_bytes()
    path.unlink()
    path.write_bytes(found[: len(found) // 2] if found else b"long")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"in the way")


def make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": remove,
    "flipped": flip,
    "cut": cut,
    "directory": make_directory,
    "link": make_link,
}
