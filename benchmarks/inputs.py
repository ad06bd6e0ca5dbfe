"""Makes the OCI image directories that the benchmarks import, once, and keeps them.

=======  =======================================================================================================
A        one gzip layer, about 965 MiB of tar and 64,000 entries of /usr; packed by umoci if it is on PATH
A-zstd   the same files in one zstd layer
B        five gzip layers, about 481 MiB packed
T        one plain tar layer of 10,000 different files of 200 KiB
=======  =======================================================================================================

A and B are made of this machine's own files, so that their figures differ between machines: compare programs
on the same inputs only.  ``--scale 0.01`` makes small ones for trying things out; a machine that has more
files than needed contributes an evenly spread part of them, chosen by name; of A the largest are left out.

    python benchmarks/inputs.py A B --cache /var/tmp/composefs-bench
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from composefs_async.oci.documents import LayerCompression
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.sources import OciLayoutSource
from composefs_async.oci.tar.writer import tar_paths

MIB = 1 << 20
USR = tuple(map(Path, ("/usr/share", "/usr/include", "/usr/libexec", "/usr/bin")))
A_BYTES, A_ENTRIES = 965 * MIB, 64_000
B_BYTES = 1300 * MIB  # of tar; packs to about 481 MiB
B_LAYERS = 5
T_FILES, T_FILE_SIZE = 10_000, 200 * 1024
DEFAULT_CACHE = Path(tempfile.gettempdir()) / "composefs-async-benchmarks"


@dataclass(frozen=True)
class Input:
    """An image directory and what is in it."""

    name: str
    path: str
    maker: str
    layers: int
    entries: int
    """Of all layers."""
    tar_bytes: int
    packed_bytes: int

    @property
    def reference(self) -> str:
        return f"oci:{self.path}:latest"

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.layers} layer(s), {self.entries} entries, {self.tar_bytes / MIB:.1f} MiB of tar, "
            f"{self.packed_bytes / MIB:.1f} MiB packed, by {self.maker}: {self.path}"
        )


@dataclass(frozen=True)
class _Made:
    maker: str
    entries: int
    tar_bytes: int


class _Counting:
    """Passes bytes on and counts them."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self.count = write, 0

    def write(self, data: bytes, /) -> int:
        self._write(data)
        self.count += len(data)
        return len(data)


def make_input(name: str, cache: Path = DEFAULT_CACHE, scale: float = 1.0) -> Input:
    """The input *name*, made now or found in *cache*.

    It appears under its name when it is complete; an interrupted run leaves a directory that the next removes.
    """
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / (name if scale == 1 else f"{name}-{scale:g}")
    record = place / "input.json"
    if not record.exists():
        partial = place.with_name(f".partial-{place.name}")
        for leftover in (place, partial):
            shutil.rmtree(leftover, ignore_errors=True)
        made = MAKERS[name](partial, scale)
        (partial / "input.json").write_text(json.dumps(asdict(_describe(name, partial, place, made))))
        partial.rename(place)
    return Input(**json.loads(record.read_bytes()))


def _describe(name: str, partial: Path, place: Path, made: _Made) -> Input:
    found = anyio.run(lambda: OciLayoutSource(partial).resolve(tag="latest"))
    packed = sum(layer.descriptor.size for layer in found.layers)
    return Input(name, str(place), made.maker, len(found.layers), made.entries, made.tar_bytes, packed)


# -- makers ------------------------------------------------------------------------------------


def _make_a(directory: Path, scale: float) -> _Made:
    paths = _chosen(USR, int(A_BYTES * scale), int(A_ENTRIES * scale))
    umoci = shutil.which("umoci")
    return _by_umoci(umoci, directory, paths) if umoci else _by_writer(directory, [paths], "gzip")


def _make_a_zstd(directory: Path, scale: float) -> _Made:
    return _by_writer(directory, [_chosen(USR, int(A_BYTES * scale), int(A_ENTRIES * scale))], "zstd")


def _make_b(directory: Path, scale: float) -> _Made:
    paths = _chosen((*USR, Path("/usr/lib")), int(B_BYTES * scale))
    return _by_writer(directory, _parts(paths, B_LAYERS), "gzip")


def _make_t(directory: Path, scale: float) -> _Made:
    writer = OciLayoutWriter(directory)
    files = max(1, round(T_FILES * scale))
    with writer.layer("none") as sink:
        out = _Counting(sink.write)
        with tarfile.open(fileobj=out, mode="w|", bufsize=MIB) as archive:  # type: ignore[call-overload]
            _add_directory(archive, "usr")  # without which there is no image, since the root takes its metadata
            _add_directory(archive, "usr/files")
            for number in range(files):
                if number % 100 == 0:
                    _add_directory(archive, f"usr/files/{number // 100:03}")
                member = tarfile.TarInfo(f"usr/files/{number // 100:03}/{number:06}")
                member.size = T_FILE_SIZE
                archive.addfile(member, io.BytesIO(random.Random(number).randbytes(T_FILE_SIZE)))
    writer.add_image([sink.layer])
    return _Made("layout_writer", files + (files + 99) // 100 + 2, out.count)


def _add_directory(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    archive.addfile(member)


MAKERS: dict[str, Callable[[Path, float], _Made]] = {"A": _make_a, "A-zstd": _make_a_zstd, "B": _make_b, "T": _make_t}


def _by_writer(directory: Path, parts: list[list[Path]], compression: LayerCompression) -> _Made:
    writer = OciLayoutWriter(directory)
    layers, entries, tar_bytes = [], 0, 0
    for paths in parts:
        with writer.layer(compression) as sink:
            out = _Counting(sink.write)
            entries += tar_paths(paths, out)
        layers.append(sink.layer)
        tar_bytes += out.count
    writer.add_image(layers)
    return _Made("layout_writer", entries, tar_bytes)


def _by_umoci(umoci: str, directory: Path, paths: list[Path]) -> _Made:
    """umoci packs with Go's gzip in many blocks, as most layers in registries are."""
    with tempfile.NamedTemporaryFile(dir=directory.parent, suffix=".tar") as file:
        out = _Counting(file.write)
        entries = tar_paths(paths, out)
        file.flush()
        image = f"{directory}:latest"
        for arguments in (
            ["init", "--layout", str(directory)],
            ["new", "--image", image],
            ["raw", "add-layer", "--image", image, file.name],
            ["gc", "--layout", str(directory)],
        ):
            subprocess.run([umoci, *arguments], check=True, capture_output=True)
    return _Made("umoci", entries, out.count)


# -- choosing files ----------------------------------------------------------------------------


def _chosen(roots: tuple[Path, ...], budget: int, entries: int | None = None) -> list[Path]:
    """Of the files below *roots* an evenly spread part that makes a tar of *budget* bytes, in order of their paths.

    With *entries* about so many are taken, and the largest are left out until the rest fits.
    """
    files = [path for root in roots for path in _files(root)]
    if entries is None:
        return _share(files, budget / max(1, _total(files)))
    files = _share(files, entries / max(1, len(files)))
    excess, dropped = _total(files) - budget, set[Path]()
    for size, path in sorted(zip(_sizes(files), files, strict=True), reverse=True):
        if excess <= 0:
            break
        dropped.add(path)
        excess -= size
    return [path for path in files if path not in dropped]


def _share(files: list[Path], share: float) -> list[Path]:
    """Chosen by name, so that the same files are chosen every time."""
    return [path for path in files if zlib.crc32(os.fsencode(path)) < share * 2**32]


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        yield from (Path(directory, name) for name in sorted(files + links))
        if not names and not files:
            yield Path(directory)


def _sizes(paths: list[Path]) -> Iterator[int]:
    """Of each path in a tar, where the second name of a file is only a header."""
    seen: set[tuple[int, int]] = set()
    for path in paths:
        status = path.lstat()
        key = (status.st_dev, status.st_ino)
        content = status.st_size if stat.S_ISREG(status.st_mode) and key not in seen else 0
        seen.add(key)
        yield 512 + (content + 511) // 512 * 512


def _total(paths: list[Path]) -> int:
    return sum(_sizes(paths))


def _parts(paths: list[Path], count: int) -> list[list[Path]]:
    """Split in order, into parts of about the same size."""
    total, before = _total(paths), 0
    parts: list[list[Path]] = [[] for _ in range(count)]
    for path, size in zip(paths, _sizes(paths), strict=True):
        parts[min(count - 1, before * count // max(1, total))].append(path)
        before += size
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MAKERS), metavar="NAME", help=", ".join(MAKERS))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="directory to keep them (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes; 1 is what the figures above say")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in MAKERS]:
        parser.error(f"unknown input {unknown[0]}; there are: {', '.join(MAKERS)}")
    for name in options.names:
        start = time.perf_counter()
        print(make_input(name, options.cache, options.scale), f"({time.perf_counter() - start:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
