"""The command ``demo``: the main job on real files of this machine, from packing them to verifying everything."""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .context import Settings
from .oci_pull import stats_text
from .progress import size_text

if TYPE_CHECKING:
    from ..digest import ObjectId
    from ..oci.importing.pull_result import PullResult
    from ..repository import Repository

__all__ = ["demo"]

_LAYERS: list[tuple[str, tuple[str, ...]]] = [
    ("gzip", ("email", "json", "asyncio", "unittest", "importlib", "xml", "logging")),
    (
        "gzip",
        ("encodings", "multiprocessing", "concurrent", "ctypes", "http", "urllib", "html", "sqlite3"),
    ),
    ("zstd", ("composefs_async", "anyio", "click", "rich")),
]


@click.command
@click.option("--keep", type=click.Path(file_okay=False), help="Work in this new directory and leave it there.")
@click.pass_obj
def demo(settings: Settings, keep: str | None) -> None:
    """Make an OCI image of real files, import it into a fresh repository, and verify everything."""
    if keep is not None:
        os.makedirs(keep)
        _Demo(settings, Path(keep)).run()
        click.echo(f"\nEverything is in {keep}; try:  composefs-async --repo {keep}/repository oci images")
        return
    with tempfile.TemporaryDirectory(prefix="composefs-async-demo-") as directory:
        _Demo(settings, Path(directory)).run()


class _Demo:
    def __init__(self, settings: Settings, place: Path) -> None:
        self._settings, self._place = settings, place

    def run(self) -> None:
        from .. import _native

        self._pack()
        repo = self._init()
        with repo:
            result = self._pull(repo)
            self._list(repo)
            self._read_back(repo, result)
            self._verify(repo, result)
            self._pull_again(repo)
        if (missing := _native.missing()) is not None:
            click.echo(f"\n{missing}")

    def _pack(self) -> None:
        from ..oci.layout_writer import OciLayoutWriter
        from ..oci.tar.writer import tar_directories

        with _step("Packing real files of this machine into an OCI image") as say:
            writer, layers, count = OciLayoutWriter(self._place / "image"), [], 0
            for compression, names in _LAYERS:
                sources = [path for name in names if (path := _find(name)) is not None]
                with writer.layer(compression, level=1 if compression == "gzip" else 3) as sink:  # type: ignore[arg-type]
                    count += tar_directories(sources, sink, root="/")
                layers.append(sink.layer)
            writer.add_image(layers)
            packed = sum(layer.descriptor.size for layer in layers)
            say(f"{len(layers)} layers (gzip, gzip, zstd), {count} files and directories, {size_text(packed)} packed")

    def _init(self) -> Repository:
        from ..errors import VerityNotSupportedError
        from ..repository import Repository

        with _step("Creating a repository") as say:
            try:
                repo = Repository.init(self._place / "repository")
            except VerityNotSupportedError:
                repo = Repository.init(self._place / "repository", insecure=True)
            guard = "secured by fs-verity" if repo.secure else "insecure, since this file system has no fs-verity"
            say(f"{repo.algorithm.text}, {guard}")
        return repo

    def _import(self, repo: Repository) -> PullResult:
        from .. import oci

        return self._settings.run(partial(oci.pull, repo, f"oci:{self._place}/image", tag="demo"))

    def _pull(self, repo: Repository) -> PullResult:
        with _step("Importing the image, every digest verified") as say:
            result = self._import(repo)
            say(stats_text(result.stats))
        return result

    def _list(self, repo: Repository) -> None:
        from ..oci import catalogue

        with _step("Listing the images") as say:
            for image in catalogue.images(repo):
                say(f"{image.name}: {image.manifest_digest[:19]}, {image.architecture}, {image.layer_count} layers")

    def _read_back(self, repo: Repository, result: PullResult) -> None:
        from ..digest import ObjectId
        from ..errors import DigestMismatchError
        from ..oci.stored_layers import layer_entries

        with _step("Reading a file back out of it") as say:
            for entry in layer_entries(repo, result.layers[0].diff_id):
                if isinstance(entry.content, ObjectId) and entry.path.endswith(b"/__init__.py"):
                    content = repo.read_object(entry.content)
                    original = Path("/", os.fsdecode(entry.path))
                    if content != original.read_bytes():
                        raise DigestMismatchError(str(original), "the same content", "other content")
                    say(f"{original}: {len(content)} bytes, the same as the original")
                    break

    def _verify(self, repo: Repository, result: PullResult) -> None:
        from ..errors import DigestMismatchError
        from ..naming import layer_stream

        with _step("Verifying everything") as say:
            seen: set[ObjectId] = set()
            for layer in result.layers:
                tar = hashlib.sha256()
                for piece in repo.merge_splitstream(layer_stream(layer.diff_id)):  # checks each object on the way
                    tar.update(piece)
                if (found := f"sha256:{tar.hexdigest()}") != layer.diff_id:
                    raise DigestMismatchError(f"layer {layer.diff_id}", layer.diff_id, found)
                with repo.open_stream(layer_stream(layer.diff_id)) as reader:
                    seen.update(reader.object_refs)
            say(f"{len(result.layers)} layers equal their diff_ids bit for bit, {len(seen)} objects their names")

    def _pull_again(self, repo: Repository) -> None:
        with _step("Importing it again") as say:
            result = self._import(repo)
            say(f"{result.stats.layers_present} layers present, nothing read, nothing written")


def _find(name: str) -> Path | None:
    """A package of the standard library, or one that is installed."""
    for base in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parents[2])):
        path = Path(base, name).resolve()
        if path.is_dir():
            return path
    return None


@contextmanager
def _step(title: str) -> Iterator[Callable[[str], None]]:
    """Print the title, what the step says, and how long it took."""
    lines: list[str] = []
    start = time.perf_counter()
    yield lines.append
    seconds = time.perf_counter() - start
    width = min(shutil.get_terminal_size().columns, 88) - 12
    click.echo(f"{title.ljust(width, '.')} {seconds * 1000:8.1f} ms")
    for line in lines:
        click.echo(f"    {line}")
