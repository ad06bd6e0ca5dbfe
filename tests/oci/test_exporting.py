"""Images out of a repository: every destination, every form of layers, the same bytes each time, read back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from composefs_async.errors import InvalidNameError, OciError, StreamNotFoundError
from composefs_async.oci import pull
from composefs_async.oci.exporting.export import CopyResult, export_images
from composefs_async.oci.exporting.images import ORIGINAL
from composefs_async.registry.access import Transfer
from composefs_async.repository import Repository

from .sources_golden import CONFIG, DIFF_IDS, MADE, PULLED, unpack

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the golden image: ``packed`` as it was pulled, ``kept`` with its blobs, ``plain`` unpacked."""
    place = tmp_path_factory.mktemp("made")
    archives = unpack(place, "archives")

    async def fill() -> None:
        for name, source, keeps in (
            ("packed", f"oci:{archives}/golden-oci", False),
            ("kept", f"oci:{archives}/golden-oci", True),
            ("plain", f"docker-archive:{archives}/docker20-save.tar", False),
        ):
            async with await Repository.init_async(place / name, insecure=True) as repo:
                await pull(repo, source, tag="golden:1", transfer=Transfer(keep_blobs=keeps))

    anyio.run(fill)
    return place


async def export(path: Path, destination: str, layers: str = "auto", name: str = "golden:1") -> CopyResult:
    async with Repository.open_path_async(path) as repo:
        return (await export_images(repo, [name], destination, layers=layers))[0]


@pytest.mark.parametrize("layers", ["auto", "plain", "gzip", "zstd", "gzip:1", "zstd:1", "original"])
@pytest.mark.parametrize("destination", ["oci:{}/out:tag", "oci-archive:{}/out.tar:tag", "dir:{}/out"])
@pytest.mark.parametrize("origin", ["packed", "kept", "plain"])
async def test_what_is_written_is_read_back(
    made: Path, tmp_path: Path, origin: str, destination: str, layers: str
) -> None:
    place = destination.format(tmp_path)
    if (origin, layers) == ("packed", "original"):
        with pytest.raises(OciError, match="not kept as they were shipped: sha256:"):
            await export(made / origin, place, layers)
        return
    written = await export(made / origin, place, layers)
    original = MADE if origin == "plain" else PULLED
    keeps = layers == "original" or (layers == "auto" and origin != "packed") or (origin, layers) == ("plain", "plain")
    assert (written.original_digest, written.manifest_digest == original) == (original, keeps)
    async with await Repository.init_async(tmp_path / "back", insecure=True) as repo:
        result = await pull(repo, place, tag="it")
        assert (result.manifest_digest, result.config_digest) == (written.manifest_digest, CONFIG)
        assert [layer.diff_id for layer in result.layers] == DIFF_IDS
        if not keeps:
            image = json.loads(await anyio.to_thread.run_sync(lambda: raw(repo, result.manifest_digest)))
            assert image["annotations"][ORIGINAL] == original


def program(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def raw(repo: Repository, digest: str) -> bytes:
    return b"".join(repo.merge_splitstream(f"oci-manifest-{digest}"))


@pytest.mark.parametrize("destination", ["oci-archive:{}:t", "docker-archive:{}:a/b:1"])
async def test_archives_are_the_same_each_time_and_to_standard_output(
    made: Path, tmp_path: Path, destination: str
) -> None:
    for number in range(2):
        await export(made / "packed", destination.format(tmp_path / str(number)))
    content = (tmp_path / "0").read_bytes()
    assert (tmp_path / "1").read_bytes() == content
    command = [sys.executable, "-m", "composefs_async", "--repo", made / "packed", "oci", "copy", "golden:1"]
    done = await anyio.run_process([*map(str, command), destination.format("-")], check=True)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(content).digest()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert {(info.uid, info.gid, info.mtime, info.mode) for info in archive} == {(0, 0, 0, 0o644)}


async def test_docker_archive_has_every_name(made: Path, tmp_path: Path) -> None:
    async with Repository.open_path_async(made / "packed") as repo:
        name = f"@{PULLED}"
        results = await export_images(repo, ["golden:1", name], f"docker-archive:{tmp_path}/d.tar")
        assert [result.original_digest for result in results] == [PULLED, PULLED]
    with tarfile.open(tmp_path / "d.tar") as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        (item,) = json.load(member)
    assert item["RepoTags"] == ["golden:1"]
    assert item["Layers"] == [f"{diff_id.partition(':')[2]}.tar" for diff_id in DIFF_IDS]
    async with await Repository.init_async(tmp_path / "back", insecure=True) as repo:
        assert (await pull(repo, f"docker-archive:{tmp_path}/d.tar", tag="it")).manifest_digest == MADE


async def test_layout_gets_images_and_replaces_tags(made: Path, tmp_path: Path) -> None:
    first = await export(made / "packed", f"oci:{tmp_path}/lay:a", "plain")
    second = await export(made / "packed", f"oci:{tmp_path}/lay:b", "plain")
    third = await export(made / "packed", f"oci:{tmp_path}/lay:a", "gzip")
    assert (first.blobs_written, second.blobs_present, third.blobs_written) == (5, 5, 4)
    entries = json.loads((tmp_path / "lay/index.json").read_text())["manifests"]
    tags = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}
    assert tags == {"b": first.manifest_digest, "a": third.manifest_digest}


async def test_gzip_is_that_of_zlib(made: Path, tmp_path: Path) -> None:
    written = await export(made / "packed", f"oci:{tmp_path}/lay:a", "gzip")
    blobs = tmp_path / "lay/blobs/sha256"
    manifest = json.loads((blobs / written.manifest_digest.partition(":")[2]).read_text())
    for layer in manifest["layers"]:
        packed = (blobs / layer["digest"].partition(":")[2]).read_bytes()
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        assert packer.compress(zlib.decompress(packed, 31)) + packer.flush() == packed


@pytest.mark.parametrize(
    ("destination", "layers", "error"),
    [
        ("ftp:x", "auto", InvalidNameError),
        ("oci:", "auto", InvalidNameError),
        ("oci-archive:x:", "auto", InvalidNameError),
        ("docker-daemon:", "auto", InvalidNameError),
        ("docker-archive:x:UPPER", "auto", InvalidNameError),
        ("docker-archive:x", "gzip", OciError),
        ("oci:x", "brotli", OciError),
        ("oci:x", "gzip:10", OciError),
        ("oci:x", "plain:1", OciError),
    ],
)
async def test_what_cannot_be(
    made: Path, tmp_path: Path, destination: str, layers: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await export(made / "packed", destination.replace(":x", f":{tmp_path}/x"), layers)
    assert os.listdir(tmp_path) == []


async def test_image_that_is_not_there(made: Path, tmp_path: Path) -> None:
    with pytest.raises(StreamNotFoundError):
        await export(made / "packed", f"oci:{tmp_path}/x", name="none")


@pytest.mark.parametrize("destination", ["oci:{}", "dir:{}"])
async def test_foreign_directory_is_left_alone(made: Path, tmp_path: Path, destination: str) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OciError, match="it is neither empty nor"):
        await export(made / "packed", destination.format(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]


async def test_damaged_layer_leaves_no_archive(made: Path, tmp_path: Path) -> None:
    program("cp", "-a", made / "packed", tmp_path / "repo")
    victim = max((tmp_path / "repo/objects").glob("*/*"), key=lambda path: path.stat().st_size)
    victim.chmod(0o644)
    victim.write_bytes(os.urandom(victim.stat().st_size))
    with pytest.raises(Exception, match="digest"):
        await export(tmp_path / "repo", f"oci-archive:{tmp_path}/a.tar", "plain")
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize(
    ("destination", "command"),
    [
        ("oci-archive:{}/a.tar:t", lambda place: ["skopeo", "inspect", "--raw", place]),
        ("oci:{}/lay:t", lambda place: ["skopeo", "inspect", "--raw", place]),
        ("dir:{}/dir", lambda place: ["skopeo", "inspect", "--raw", place]),
        ("docker-archive:{}/d.tar:a/b:1", lambda place: ["skopeo", "inspect", "--config", place]),
        (
            "oci:{}/lay:t",
            lambda place: ["umoci", "unpack", "--rootless", "--image", place.removeprefix("oci:"), f"{place[4:-2]}-u"],
        ),
    ],
)
async def test_other_programs_read_what_is_written(
    made: Path,
    tmp_path: Path,
    tool: Callable[[str], Path],
    destination: str,
    command: Callable[[str], list[str]],
) -> None:
    place = destination.format(tmp_path)
    name, *arguments = command(place)
    await export(made / "packed", place, "auto" if destination.startswith("docker") else "gzip")
    program(tool(name), *arguments)
