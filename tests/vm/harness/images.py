"""Disk images: EROFS images of directories and of a Python, and the empty data disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .settings import CACHE, HarnessError

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "verity", "-E", "assume_storage_prezeroed=1"],
    "btrfs": ["mkfs.btrfs", "-q"],  # has verity without an option
    "xfs": ["mkfs.xfs", "-q"],  # has no verity
}
KEPT_TREES = 6  # images of directories kept for later boots; every new virtual environment makes one


def sparse_file(path: Path, size: int) -> None:
    with open(path, "wb") as f:
        f.truncate(size)


def make_data(path: Path, fs: str, size: int) -> None:
    sparse_file(path, size)
    subprocess.run([*MKFS[fs], path], check=True, stdout=subprocess.DEVNULL)


def tree_image(image: Path, source: Path, exclude: Iterable[str] = ()) -> None:
    options = [f"--exclude-path={path}" for path in exclude]
    command = ["mkfs.erofs", "--quiet", *options, str(image), str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"mkfs.erofs failed for {source}:\n{done.stdout}")


def cached_tree_image(source: Path, exclude: Iterable[str] = ()) -> Path:
    """The image of a directory that seldom changes, made anew when the metadata of any file did."""
    state = hashlib.sha256("".join(_metadata(source, exclude)).encode()).hexdigest()[:16]
    name = hashlib.sha256(f"{source}\0{sorted(exclude)}".encode()).hexdigest()[:16]
    image = CACHE / "trees" / f"{name}-{state}.erofs"
    image.parent.mkdir(exist_ok=True)
    if image.exists():
        os.utime(image)
        return image
    temporary = image.with_suffix(f".{os.getpid()}")
    try:
        tree_image(temporary, source, exclude)
        temporary.rename(image)
    finally:
        temporary.unlink(missing_ok=True)
    _prune(image, name)
    return image


def _metadata(source: Path, exclude: Iterable[str]) -> Iterator[str]:
    skip = {os.path.join(source, path) for path in exclude}
    stack = [str(source)]
    while stack:
        for entry in sorted(os.scandir(stack.pop()), key=lambda entry: entry.name):
            if entry.path in skip:
                continue
            st = entry.stat(follow_symlinks=False)
            yield f"{entry.path}\0{st.st_mode}\0{st.st_size}\0{st.st_mtime_ns}\n"
            if entry.is_dir(follow_symlinks=False):
                stack.append(entry.path)


def _prune(image: Path, name: str) -> None:
    """Remove older states of the same directory, and what was not used for long.  A machine keeps its own open."""
    others = [path for path in image.parent.glob("*.erofs") if path != image]
    older = {path for path in others if path.name.startswith(f"{name}-")}
    rest = sorted(set(others) - older, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [*older, *rest[KEPT_TREES - 1 :]]:
        path.unlink(missing_ok=True)


def python_trees(prefix: Path | None) -> tuple[list[tuple[Path, list[str]]], Path]:
    """The directories, each with what to leave out, of the Python at *prefix*, and its directory of programs.

    Without a prefix it is the Python that runs this, without packages.
    """
    python = _interpreter(prefix) if prefix else Path(sys.executable)
    code = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix, *sys.version_info[:2]]))"
    answer = subprocess.run([python, "-I", "-c", code], check=True, stdout=subprocess.PIPE).stdout
    found, base, major, minor = json.loads(answer)
    environment = prefix is not None and found != base
    packages = prefix is not None
    if environment:
        settings = Path(found, "pyvenv.cfg").read_text()
        packages = bool(re.search(r"(?m)^include-system-site-packages\s*=\s*true", settings))
    trees = []
    if base != "/usr":  # Debian's own Python is in the root image
        lib = f"lib/python{major}.{minor}"
        left_out = ["include", "share", f"{lib}/test", *([] if packages else [f"{lib}/site-packages"])]
        left_out += [f"{lib}/{path.name}" for path in Path(base, lib).glob("config-*")]
        trees.append((Path(base), left_out))
    if environment:
        trees.append((Path(found), []))
    return trees, Path(found if environment else base, "bin")


def _interpreter(prefix: Path) -> Path:
    for name in ("python3", "python"):
        if (python := prefix / "bin" / name).exists():
            return python
    raise HarnessError(f"no Python in {prefix}")
