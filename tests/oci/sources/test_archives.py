"""Images in archives: golden ones of real tools, from files, packed files and pipes, and hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import resource
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import sha256_content_digest
from composefs_async.errors import (
    ComposefsError,
    CompressionError,
    DigestMismatchError,
    ImageNotFoundError,
    InvalidNameError,
    OciError,
    TarError,
    TransportError,
)
from composefs_async.oci import Limits, Platform, import_layer, open_source, pull
from composefs_async.oci.sources.familiar import normalized_name
from composefs_async.repository import Repository

from ..sources_golden import CONFIG, DIFF_IDS, MADE, PODMAN, PULLED, unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("golden"), "archives")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as opened:
        yield opened


def streams(repo: Repository) -> list[str]:
    return sorted(path.name for path in Path(repo.path, "streams").glob("oci-*"))


@contextmanager
def piped(data: bytes, kind: str = "pipe") -> Iterator[str]:
    """The path of a descriptor that somebody writes *data* into."""
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        ends = socket.socketpair()
        reading, writing = (end.detach() for end in ends)

    def write() -> None:
        with open(writing, "wb", buffering=0) as file:
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BrokenPipeError:
                pass

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd.compress}
NAMES = {
    "docker20-save": MADE,
    "docker20-api": MADE,
    "skopeo-docker": MADE,
    "podman-docker-archive": MADE,
    "podman-multi": MADE,
    "skopeo-oci": PULLED,
    "containerd16": PULLED,
    "containerd16-nomanifest": PULLED,
    "podman-oci-archive": PODMAN,
}


@pytest.mark.parametrize("way", ["file", "gz", "zst", "pipe", "socket", "packed pipe", "fifo"])
@pytest.mark.parametrize(("name", "manifest"), NAMES.items(), ids=NAMES)
async def test_golden_image_comes_from_every_archive_in_every_way(
    golden: Path, repo: Repository, tmp_path: Path, name: str, manifest: str, way: str
) -> None:
    data = (golden / f"{name}.tar").read_bytes()
    if way == "file":
        result = await pull(repo, f"archive:{golden / name}.tar", tag="it")
    elif way in PACKINGS:
        (tmp_path / "packed").write_bytes(PACKINGS[way](data))
        result = await pull(repo, f"archive:{tmp_path / 'packed'}", tag="it")
    elif way == "fifo":
        os.mkfifo(tmp_path / "fifo")
        thread = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[data])
        thread.start()
        result = await pull(repo, f"archive:{tmp_path / 'fifo'}", tag="it")
        thread.join()
    else:
        with piped(zstd.compress(data) if way == "packed pipe" else data, way) as path:
            result = await pull(repo, f"archive:{path}", tag="it")
    assert (result.manifest_digest, result.config_digest) == (manifest, CONFIG)
    assert [layer.diff_id for layer in result.layers] == DIFF_IDS
    assert streams(repo) == sorted(
        [f"oci-config-{CONFIG}", f"oci-manifest-{manifest}", *(f"oci-layer-{diff_id}" for diff_id in DIFF_IDS)]
    )
    assert await repo.leases_async() == []


@pytest.mark.parametrize("way", ["file", "pipe"])
@pytest.mark.parametrize("name", ["docker20-save-twice", "skopeo-docker-twice"])
async def test_layer_that_occurs_twice_may_be_a_link_before_its_target(
    golden: Path, repo: Repository, name: str, way: str
) -> None:
    with piped((golden / f"{name}.tar").read_bytes()) as pipe:
        result = await pull(repo, f"docker-archive:{pipe if way == 'pipe' else golden / f'{name}.tar'}")
    assert [layer.diff_id for layer in result.layers] == [DIFF_IDS[at] for at in (0, 1, 1, 2)]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("docker-archive:{}/docker20-save-two.tar:@0", MADE),
        ("docker-archive:{}/docker20-save-two.tar:localhost/golden:v1", MADE),
        ("docker-archive:{}/docker20-save.tar:docker.io/other/name:tag2", MADE),
        ("oci-archive:{}/skopeo-oci.tar:golden", PULLED),
        ("oci-archive:{}/skopeo-oci.tar:@0", PULLED),
        (f"oci-archive:{{}}/skopeo-oci.tar@{PULLED}", PULLED),
        ("oci-archive:{}/containerd16.tar:localhost/golden:golden", PULLED),
        ("oci-archive:{}/containerd16.tar:golden", PULLED),
        ("docker-archive:{}/containerd16.tar:localhost/golden:golden", PULLED),
        ("dir:{}/skopeo-dir", PULLED),
        ("oci:{}/podman-oci-dir", PODMAN),
        ("oci:{}/lie-oci", "sha256:5f124e97e8d8db860ea8278c09f2af336479453d909747d80901edd9e80b91e2"),
    ],
)
async def test_image_is_found_by_its_reference(golden: Path, repo: Repository, reference: str, expected: str) -> None:
    result = await pull(repo, reference.format(golden), tag="it")
    assert (result.manifest_digest, [layer.diff_id for layer in result.layers]) == (expected, DIFF_IDS)


async def test_directory_whose_media_types_lie(golden: Path, repo: Repository) -> None:
    result = await pull(repo, f"dir:{golden}/podman-docker-dir", tag="it")
    assert [layer.diff_id for layer in result.layers] == DIFF_IDS


@pytest.mark.parametrize(
    ("reference", "error", "text"),
    [
        (
            "docker-archive:{}/docker20-save-two.tar",
            OciError,
            "2 images, @0 localhost/golden:v1, @1 localhost/twice:v1",
        ),
        ("docker-archive:{}/docker20-save-two.tar:nope", ImageNotFoundError, "@0 localhost/golden:v1, @1"),
        ("docker-archive:{}/docker20-save-two.tar:@2", ImageNotFoundError, "it has 2 images, from @0"),
        ("oci-archive:{}/skopeo-oci.tar:nope", ImageNotFoundError, "there are: golden"),
        ("oci-archive:{}/skopeo-oci.tar:@1", ImageNotFoundError, "index.json has 1 entries"),
        ("oci-archive:{}/docker20-save.tar", OciError, "no index.json, but a manifest.json: use docker-archive:"),
        ("docker-archive:{}/skopeo-oci.tar", OciError, "no manifest.json, but an index.json: use oci-archive:"),
        ("docker-archive:{}/none.tar", ImageNotFoundError, "there is no file"),
        ("docker-archive:{}/skopeo-dir", OciError, "it is a directory"),
        ("dir:{}/none", ImageNotFoundError, "there is no such directory"),
        ("dir:{}/golden-oci", TransportError, "manifest.json is missing"),
    ],
)
async def test_image_that_is_not_there(
    golden: Path, repo: Repository, reference: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await pull(repo, reference.format(golden))
    assert streams(repo) == []


@pytest.mark.parametrize(
    "reference",
    [
        "docker-archive:",
        "docker-archive:x:",
        "docker-archive:x@sha256:" + 64 * "0",
        "oci-archive:x:@y",
        "oci-archive:x:y@sha256:" + 64 * "0",
        "oci-archive:x@sha256:0",
        "dir:",
        "docker-daemon:alpine",
        "docker-daemon:host:5000/alpine",
    ],
)
async def test_reference_that_is_none(repo: Repository, reference: str) -> None:
    with pytest.raises(InvalidNameError):
        await pull(repo, reference)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("a", "docker.io/library/a:latest"),
        ("a/b:t", "docker.io/a/b:t"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a:t", "localhost:5000/a:t"),
        ("index.docker.io/a:t", "docker.io/library/a:t"),
        ("A", None),
        ("a@sha256:" + 64 * "0", None),
        ("", None),
        ("a:", None),
    ],
)
async def test_names_are_normalized(name: str, whole: str | None) -> None:
    assert normalized_name(name) == whole


async def test_layers_that_are_there_are_compared_and_not_stored(golden: Path, repo: Repository) -> None:
    data = (golden / "skopeo-docker.tar").read_bytes()
    with piped(data) as path:
        await pull(repo, f"docker-archive:{path}", tag="it")
    with piped(data) as path:
        again = await pull(repo, f"docker-archive:{path}", tag="it")
    assert (again.stats.layers_present, again.stats.layers_imported) == (3, 0)


async def test_archive_from_where_standard_input_stands(golden: Path, repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before" + (golden / "docker20-save.tar").read_bytes())
    with (tmp_path / "file").open("rb", buffering=0) as file:
        file.seek(6)
        result = await pull(repo, f"archive:/dev/fd/{file.fileno()}", tag="it")
    assert result.manifest_digest == MADE


async def test_platform_that_was_asked_for(golden: Path, repo: Repository) -> None:
    reference = f"docker-archive:{golden}/docker20-save.tar"
    with pytest.raises(ImageNotFoundError, match="linux/amd64"):
        await pull(repo, reference, platform=Platform("linux", "s390x"))
    assert (await pull(repo, reference, platform=Platform("linux", "amd64"))).manifest_digest == MADE


async def test_source_finds_images_by_the_digest_of_the_manifest(golden: Path) -> None:
    async with open_source(f"archive:{golden}/docker20-save-two.tar") as source:
        assert (await source.resolve(digest=MADE)).manifest.digest == MADE
        with pytest.raises(ImageNotFoundError):
            await source.resolve(digest=PULLED)


# -- archives made by hand ---------------------------------------------------------------------


def tar(members: dict[str, bytes | str]) -> bytes:
    """Files of bytes, and symbolic links of text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name.partition("#")[0])
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                made.addfile(info)
            else:
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return out.getvalue()


LAYER = tar({"etc/a": b"x" * 5000, "etc/b": b"small"})
DIFF_ID = sha256_content_digest(LAYER)
HEX = DIFF_ID.partition(":")[2]


def config(**changes: Any) -> bytes:
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]}}
    return json.dumps(document | changes).encode()


def items(layers: list[str], config_name: str = "config.json", tags: Any = ("a:1",)) -> bytes:
    return json.dumps([{"Config": config_name, "RepoTags": tags, "Layers": layers}]).encode()


def docker(**changes: bytes | str | None) -> dict[str, bytes | str]:
    """A whole archive, with members replaced, added, or (None) left out."""
    members: dict[str, bytes | str | None] = {
        "layer.tar": LAYER,
        "config.json": config(),
        "manifest.json": items(["layer.tar"]),
    }
    return {name: content for name, content in (members | changes).items() if content is not None}


async def both(repo: Repository, tmp_path: Path, data: bytes, suffix: str = "", **options: Any) -> list[Any]:
    """What comes of an archive in a file and from a pipe: the manifest's digest, or the error."""
    (tmp_path / "made.tar").write_bytes(data)
    results: list[Any] = []
    with piped(data) as pipe:
        for path in (tmp_path / "made.tar", pipe):
            try:
                results.append((await pull(repo, f"archive:{path}{suffix}", tag="it", **options)).manifest_digest)
            except ComposefsError as error:
                results.append(error)
    return results


def oci_manifest(layers: list[dict[str, Any]], config_raw: bytes, **changes: Any) -> bytes:
    described = {"mediaType": "application/vnd.oci.image.config.v1+json"}
    described |= {"digest": sha256_content_digest(config_raw), "size": len(config_raw)}  # type: ignore[dict-item]
    document = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": described}
    return json.dumps(document | {"layers": layers} | changes).encode()


PLAIN = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIFF_ID, "size": len(LAYER)}


def blob(content: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def entry(content: bytes, **annotations: str) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": sha256_content_digest(content),
        "size": len(content),
        "annotations": annotations,
    }


def layout(manifests: list[dict[str, Any]], *blobs: bytes) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    found["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    return found | {blob(content): content for content in blobs}


MADE_OF_IT = sha256_content_digest(
    json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256_content_digest(config()),
                "size": len(config()),
            },
            "layers": [PLAIN],
        },
        separators=(",", ":"),
    ).encode()
)
WITHOUT_LAYERS = oci_manifest([], config())
WITH_LAYER = oci_manifest([PLAIN], config())
NAMED = {"io.containerd.image.name": "docker.io/library/a:latest", "org.opencontainers.image.ref.name": "latest"}
OTHER = oci_manifest([PLAIN], config(author="other"))
OTHER_NAMED = NAMED | {"io.containerd.image.name": "docker.io/library/b:latest"}

GOOD: dict[str, tuple[dict[str, bytes | str], str]] = {
    "plain": (docker(), MADE_OF_IT),
    "packed layer": (docker(**{"layer.tar": gzip.compress(LAYER)}), MADE_OF_IT),
    "link": (docker(**{"x/layer.tar": "../layer.tar", "manifest.json": items(["x/layer.tar"])}), MADE_OF_IT),
    "dots": (docker(**{"./layer.tar": LAYER, "manifest.json": items(["./x/../layer.tar"])}), MADE_OF_IT),
    "last wins": (docker(**{"layer.tar": tar({"wrong": b"x"}), "layer.tar#2": LAYER}), MADE_OF_IT),
    "no tags": (docker(**{"manifest.json": items(["layer.tar"], tags=None)}), MADE_OF_IT),
    # Docker 25.0.0 wrote manifests without layers.
    "manifest without layers": (
        layout([entry(WITHOUT_LAYERS)], WITHOUT_LAYERS, config(), LAYER)
        | {"manifest.json": items([blob(LAYER)], blob(config()))},
        MADE_OF_IT,
    ),
    "not in the index": (
        layout([], config(), LAYER) | {"manifest.json": items([blob(LAYER)], blob(config()))},
        MADE_OF_IT,
    ),
    "manifest kept": (
        layout([entry(WITH_LAYER)], WITH_LAYER, config(), LAYER)
        | {"manifest.json": items([blob(LAYER)], blob(config()))},
        sha256_content_digest(WITH_LAYER),
    ),
    "two of one tag": (
        layout([entry(WITH_LAYER, **NAMED), entry(OTHER, **OTHER_NAMED)], WITH_LAYER, OTHER, config(), LAYER),
        sha256_content_digest(WITH_LAYER),
    ),
}


@pytest.mark.parametrize("case", GOOD)
async def test_unusual_archives(repo: Repository, tmp_path: Path, case: str) -> None:
    members, expected = GOOD[case]
    suffix = ":a" if case == "two of one tag" else ""
    assert await both(repo, tmp_path, tar(members), suffix) == [expected, expected]


PAX_BOMB = tar({"x" * 300: b""})[:512]
BAD: dict[str, tuple[dict[str, bytes | str], type[Exception], str]] = {
    "no config": (docker(**{"config.json": None}), TransportError, "config.json is missing"),
    "no layer": (docker(**{"layer.tar": None}), TransportError, "layer.tar is missing"),
    "other layer": (docker(**{"layer.tar": tar({"other": b"x"})}), DigestMismatchError, "unpacked layer"),
    "damaged layer": (docker(**{"layer.tar": LAYER[:700]}), ComposefsError, ""),
    "more layers": (docker(**{"manifest.json": items(["layer.tar"] * 2)}), OciError, "it has 2 layers, but its config"),
    "no rootfs": (docker(**{"config.json": config(rootfs=None)}), OciError, "no rootfs"),
    "no items": (docker(**{"manifest.json": b"[]"}), OciError, "lists no image"),
    "object": (docker(**{"manifest.json": b"{}"}), OciError, "where a list belongs"),
    "deep": (docker(**{"manifest.json": b"[" * 200_000}), OciError, "nested too deeply|not valid JSON"),
    "two manifests": (docker(**{"manifest.json#2": items(["layer.tar"])}), OciError, "two members manifest.json"),
    "old format": (
        docker(**{"manifest.json": None, "repositories": b"{}"}),
        OciError,
        "format of Docker before 1.10",
    ),
    "nothing": ({"etc/passwd": b"x"}, OciError, "no archive of images"),
    "loop": (docker(**{"layer.tar": "b", "b": "layer.tar"}), OciError, "a link through more than 8 names"),
    "above": (docker(**{"layer.tar": "../../etc/passwd"}), OciError, "leads out of the archive"),
    "absolute": (docker(**{"layer.tar": "/etc/passwd"}), OciError, "leads out of the archive"),
    "outside": (docker(**{"../x": b"x"}), OciError, "is outside the archive"),
    "config of another name": (
        docker(**{f"{HEX}.json": config(), "manifest.json": items(["layer.tar"], f"{HEX}.json")}),
        DigestMismatchError,
        "^config .*json: expected",
    ),
    "large document": (docker(**{"config.json": b"{" + bytes(5 << 20)}), OciError, "larger than|too large"),
    "blob of another digest": (
        layout([entry(WITH_LAYER)], WITH_LAYER, config()) | {blob(LAYER): tar({"other": b"x" * 5000})},
        ComposefsError,
        "",
    ),
    "two of one tag": (
        layout([entry(WITH_LAYER, **NAMED), entry(OTHER, **OTHER_NAMED)], WITH_LAYER, OTHER, config(), LAYER),
        OciError,
        "several images",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_archives_that_are_refused(repo: Repository, tmp_path: Path, case: str) -> None:
    members, error, text = BAD[case]
    suffix = ":latest" if case == "two of one tag" else ""
    for found in await both(repo, tmp_path, tar(members), suffix):
        assert isinstance(found, error), found
        assert re.search(text, str(found)), found
    assert streams(repo) == []
    assert (await repo.gc_async()).objects_leased == 0


@pytest.mark.parametrize("at", [0, 1, 100, 511, 512, 513, 1500, 6000, 9000])
async def test_archives_that_are_cut_off(repo: Repository, tmp_path: Path, at: int) -> None:
    whole = tar(docker())
    for found in await both(repo, tmp_path, whole[:at]):
        assert isinstance(found, TarError | OciError | TransportError), found
    assert streams(repo) == []


async def test_damage_is_found_anywhere(repo: Repository, tmp_path: Path) -> None:
    whole = tar(docker())
    for at in range(0, len(whole) - 1024, 397):
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        for found in await both(repo, tmp_path, bytes(damaged)):
            assert found == MADE_OF_IT or isinstance(found, ComposefsError), (at, found)


async def test_memory_is_bounded(repo: Repository, tmp_path: Path) -> None:
    huge = tarfile.TarInfo("manifest.json")
    huge.size = 1 << 30
    with (tmp_path / "huge.tar").open("wb") as file:
        file.write(huge.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + huge.size + 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OciError, match="json: it is larger than the limit"):
        await pull(repo, f"docker-archive:{tmp_path / 'huge.tar'}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


async def test_limits_hold_for_packed_archives(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(tar(docker(zeros=bytes(80 << 20)))))
    with pytest.raises(CompressionError, match="max_ratio"):
        await pull(repo, f"docker-archive:{tmp_path / 'bomb.gz'}", limits=Limits(max_ratio=10))


async def test_unknown_packing_of_an_archive(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"BZh9" + bytes(1000))
    with pytest.raises(CompressionError, match="bzip2"):
        await pull(repo, f"docker-archive:{tmp_path / 'x'}")


async def test_pull_from_a_pipe_can_be_cancelled(repo: Repository) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, tar(docker())[:20_000])
        with anyio.move_on_after(0.2) as scope:
            await pull(repo, f"docker-archive:/dev/fd/{reading}", tag="it")
        assert scope.cancelled_caught
        assert streams(repo) == []
    finally:
        os.close(reading)
        os.close(writing)


async def test_layers_of_a_cancelled_pull_are_leased(repo: Repository) -> None:
    large = tar({f"f{number}": os.urandom(100_000) for number in range(3)})
    reading, writing = os.pipe()
    try:
        thread = threading.Thread(target=os.write, args=[writing, tar({"a.tar": large, "b": b"x" * 2000})[:-3000]])
        thread.start()
        with anyio.move_on_after(1):
            await pull(repo, f"docker-archive:/dev/fd/{reading}", tag="it")
        thread.join()
    finally:
        os.close(reading)
        os.close(writing)
    (lease,) = await repo.leases_async()
    assert list(lease.layers) == [sha256_content_digest(large)]
    assert (await repo.gc_async()).objects_removed == 0
    assert (await import_layer(repo, None, aiter(_Pieces([large])))).stats.objects_present == 3


class _Pieces:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            raise StopAsyncIteration from None
