"""Damaged and hostile images, repositories that cannot take one: typed errors, nothing published."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm, sha256_content_digest
from composefs_async.errors import (
    CompressionError,
    DigestMismatchError,
    FormatError,
    IntegrityError,
    InvalidNameError,
    OciError,
    ReadOnlyRepositoryError,
    TarError,
    TransportError,
)
from composefs_async.oci.documents import Descriptor
from composefs_async.oci.importing.layers import import_layer
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.limits import Limits
from composefs_async.oci.platforms import Platform
from composefs_async.oci.sources import LocalBlob
from composefs_async.oci.tar.writer import WrittenLayer
from composefs_async.repository import Repository

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

PLATFORM = Platform("linux", "amd64")
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def archive(*members: tarfile.TarInfo, size: int = 3000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        file = tarfile.TarInfo("file")
        file.size = size
        made.addfile(file, io.BytesIO(random.Random(size).randbytes(size)))
        for member in members:
            made.addfile(member, io.BytesIO(bytes(member.size)))
    return out.getvalue()


def member(name: str = "x", **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def with_header(change: Callable[[bytearray], None]) -> bytes:
    """A good file, and behind it a header that *change* spoils, with a good checksum unless it spoils that."""
    header = bytearray(tarfile.TarInfo("victim").tobuf(tarfile.USTAR_FORMAT)[:512])
    change(header)
    if header[148] != ord("!"):
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return archive()[:4096] + bytes(header) + bytes(1024)


def put(at: int, value: bytes) -> Callable[[bytearray], None]:
    def change(header: bytearray) -> None:
        header[at : at + len(value)] = value

    return change


GOOD = archive()
PAX_NUL = archive(member(pax_headers={"path": "a\0b"}))

BAD_TARS: dict[str, bytes] = {
    "checksum": with_header(put(148, b"!")),
    "sparse": with_header(put(156, b"S")),
    "sparse in PAX": archive(member(pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, size=512)),
    "unknown type": with_header(put(156, b"V")),
    "negative size": with_header(put(124, b"-1\0")),
    "size beyond the limit": with_header(put(124, ((1 << 95) | (1 << 41)).to_bytes(12, "big"))),
    "link target of 4096 bytes": archive(member(type=tarfile.SYMTYPE, linkname="t" * 4096)),
    "NUL in a name": PAX_NUL,
    "cut in a file": archive()[:2000],
    "cut in a header": archive()[: 512 + 3072 + 100] + b"x",
    "no tar": random.Random(1).randbytes(3000),
}


def blob(directory: Path, digest: str) -> Path:
    return directory / "blobs" / digest.replace(":", "/")


def published(path: Path) -> list[str]:
    """Whatever a failed import must not leave: names, and temporary files.  A lease it may leave."""
    names = [str(entry.relative_to(path)) for entry in path.rglob("*") if not entry.is_dir()]
    expected = ("meta.json", "objects/", ".composefs-async/leases/")
    return sorted(name for name in names if not name.startswith(expected) or "/." in name)


class Case:
    """A repository with one good image, and an image directory to be spoiled."""

    def __init__(self, path: Path, fsck: Path | None) -> None:
        self.path, self.image = path, path / "image"
        self.repo = Repository.init(path / "repo", algorithm=Algorithm.SHA256, insecure=True)
        self.writer = OciLayoutWriter(self.image)
        self._fsck = fsck

    def add(self, *layers: WrittenLayer, **options: Any) -> Descriptor:
        return self.writer.add_image(layers, platform=PLATFORM, **options)

    async def refused(self, error: type[BaseException], **options: Any) -> Any:
        """Pull; the error; the repository is as it was and of use."""
        before = published(self.path / "repo")
        with pytest.raises(error) as caught:
            await pull(self.repo, f"oci:{self.image}", **{"tag": "bad", "platform": PLATFORM} | options)
        assert published(self.path / "repo") == before
        if isinstance(caught.value, FormatError | IntegrityError):  # no other try could use what is there
            assert self.repo.leases() == []
        self.check()
        return caught.value

    async def succeeds(self) -> None:
        writer = OciLayoutWriter(self.path / "good")
        writer.add_image([writer.add_layer(GOOD)], platform=PLATFORM)
        await pull(self.repo, f"oci:{self.path}/good", platform=PLATFORM, tag="good")
        self.check()

    def check(self) -> None:
        """Nothing is wrong; and the other implementation finds nothing either, where it is there to look."""
        assert self.repo.fsck().ok
        if self._fsck:
            command = [self._fsck, "--repo", self.path / "repo", "fsck", "--json"]
            answer = subprocess.run(command, capture_output=True, check=True, timeout=60)
            assert json.loads(answer.stdout)["ok"], answer.stdout


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    found = shutil.which("cfsctl")
    made = Case(tmp_path, Path(found) if found else None)
    with made.repo:
        yield made


# -- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_TARS)
async def test_hostile_tar_is_refused_at_its_offset(name: str, case: Case) -> None:
    case.add(case.writer.add_layer(GOOD), bad := case.writer.add_layer(BAD_TARS[name]))
    error = await case.refused(TarError)
    assert 0 <= error.offset <= len(BAD_TARS[name])
    assert error.name == f"layer {bad.diff_id}"
    await case.succeeds()


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd"])
async def test_blob_of_another_digest_is_refused(packing: Any, case: Case) -> None:
    layer = case.writer.add_layer(GOOD, packing)
    case.add(case.writer.add_layer(archive(size=70)), layer)
    content = bytearray(blob(case.image, layer.descriptor.digest).read_bytes())
    content[4 if packing == "gzip" else -1] ^= 1  # the time in the header of gzip changes nothing that is unpacked
    blob(case.image, layer.descriptor.digest).write_bytes(content)
    error = await case.refused((DigestMismatchError, CompressionError))  # type: ignore[arg-type]
    if packing != "zstd":
        assert (error.expected, error.found) == (layer.descriptor.digest, sha256_content_digest(bytes(content)))
        assert layer.descriptor.digest in error.what
    await case.succeeds()


async def test_content_under_a_foreign_diff_id_is_refused(case: Case) -> None:
    """Otherwise the next image that has the layer would be given the planted content."""
    planted, victim = case.writer.add_layer(archive(size=666)), sha256_content_digest(GOOD)
    case.add(planted, config={"rootfs": {"type": "layers", "diff_ids": [victim]}})
    error = await case.refused(DigestMismatchError)
    assert (error.expected, error.found) == (victim, planted.diff_id)
    await case.succeeds()
    merged = b"".join(case.repo.merge_splitstream(f"oci-layer-{victim}"))
    assert merged == GOOD


async def test_packed_blob_named_by_its_content_is_refused(case: Case) -> None:
    """A descriptor with the digest of what the blob unpacks to: both look the same, and one is wrong."""
    packed = gzip.compress(GOOD)
    digest = sha256_content_digest(GOOD)
    blob(case.image, digest).write_bytes(packed)
    case.add(WrittenLayer(Descriptor(f"{OCI_LAYER}+gzip", digest, len(packed)), digest))
    error = await case.refused(DigestMismatchError)
    assert (error.expected, error.found) == (digest, sha256_content_digest(packed))


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
async def test_damaged_packing_is_refused(packing: Any, case: Case) -> None:
    layer = case.writer.add_layer(GOOD, packing)
    content = bytearray(blob(case.image, layer.descriptor.digest).read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    digest = sha256_content_digest(bytes(content))
    blob(case.image, digest).write_bytes(content)
    case.add(WrittenLayer(Descriptor(layer.descriptor.media_type, digest, len(content)), layer.diff_id))
    error = await case.refused((CompressionError, DigestMismatchError))  # type: ignore[arg-type]
    assert isinstance(error, DigestMismatchError) or 0 <= error.offset <= len(content)
    await case.succeeds()


async def test_limits_stop_a_layer_and_can_be_raised(case: Case) -> None:
    case.add(case.writer.add_layer(GOOD))
    await case.refused(CompressionError, limits=Limits(max_layer_size=len(GOOD) - 1))
    await case.refused(TarError, limits=Limits(max_file_size=2999))
    await pull(case.repo, f"oci:{case.image}", platform=PLATFORM, limits=Limits(max_layer_size=len(GOOD)))
    assert published(case.path / "repo")


async def test_limit_holds_for_blobs_of_artifacts(case: Case) -> None:
    case.writer.add_artifact([("application/x", bytes(5000))], "application/x")
    error = await case.refused(CompressionError, limits=Limits(max_layer_size=4999), platform=None)
    assert error.name == f"blob {sha256_content_digest(bytes(5000))}"
    await pull(case.repo, f"oci:{case.image}", limits=Limits(max_layer_size=5000))


@pytest.mark.parametrize("change", ["missing", "short", "directory", "pipe"])
async def test_blob_that_cannot_be_read_is_named(change: str, case: Case) -> None:
    layer = case.writer.add_layer(GOOD)
    case.add(case.writer.add_layer(archive(size=70)), layer)
    path = blob(case.image, layer.descriptor.digest)
    content = path.read_bytes()
    path.unlink()
    if change == "short":
        path.write_bytes(content[:-1])
    elif change == "directory":
        path.mkdir()
    elif change == "pipe":
        os.mkfifo(path)
    error = await case.refused(OciError if change == "short" else TransportError)
    assert path.name in str(error)


async def test_other_layers_of_a_failed_image_have_no_name(case: Case) -> None:
    good = [case.writer.add_layer(archive(size=size)) for size in (5000, 50, 700_000)]
    case.add(*good, case.writer.add_layer(BAD_TARS["checksum"]))
    await case.refused(TarError)
    assert not (case.path / "repo/streams").exists()


# -- documents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["index", "manifest", "config"])
async def test_document_of_another_digest_is_refused(which: str, case: Case) -> None:
    manifest = case.add(case.writer.add_layer(GOOD), tag=None)
    index = case.writer.add_index([manifest])
    config = json.loads(blob(case.image, manifest.digest).read_bytes())["config"]["digest"]
    digest = {"index": index.digest, "manifest": manifest.digest, "config": config}[which]
    path = blob(case.image, digest)
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    error = await case.refused((DigestMismatchError, OciError))  # type: ignore[arg-type]
    assert digest in str(error)
    assert isinstance(error, DigestMismatchError)


async def test_manifest_and_config_must_agree_in_the_number_of_layers(case: Case) -> None:
    layers = [case.writer.add_layer(GOOD), case.writer.add_layer(archive(size=70))]
    case.add(*layers, config={"rootfs": {"type": "layers", "diff_ids": [layers[0].diff_id]}})
    error = await case.refused(OciError)
    assert "2 layers" in error.reason


async def test_layer_of_an_unknown_type_is_refused_in_an_image(case: Case) -> None:
    descriptor = case.writer.add_blob(GOOD, "application/x")
    case.add(WrittenLayer(descriptor, sha256_content_digest(GOOD)))
    error = await case.refused(OciError)
    assert "no tar" in error.reason


@pytest.mark.parametrize("diff_id", ["sha256:../../../x", "sha1:" + "0" * 40, "x", "sha256:" + "A" * 64])
async def test_diff_id_that_is_no_digest_is_refused(diff_id: str, case: Case) -> None:
    case.add(case.writer.add_layer(GOOD), config={"rootfs": {"type": "layers", "diff_ids": [diff_id]}})
    await case.refused(OciError)


@pytest.mark.parametrize("tag", ["", ".", "..", "@sha256:0", "n" * 256, "/" * 90, "a\0b", "\udc80"])
async def test_tag_that_cannot_be_a_name_is_refused(tag: str, case: Case) -> None:
    case.add(case.writer.add_layer(GOOD))
    error = await case.refused(InvalidNameError, tag=tag)
    assert error.name == tag


@pytest.mark.parametrize("tag", ["../x", "../../objects/x", "a/../b", "refs", "%2F"])
async def test_tag_cannot_leave_its_directory(tag: str, case: Case) -> None:
    case.add(case.writer.add_layer(GOOD))
    await pull(case.repo, f"oci:{case.image}", tag=tag, platform=PLATFORM)
    assert len(os.listdir(case.path / "repo/streams/refs/oci")) == 1
    assert sorted(os.listdir(case.path / "repo")) == ["images", "meta.json", "objects", "streams"]
    assert sorted(os.listdir(case.path)) == ["image", "repo"]


# -- repositories ------------------------------------------------------------------------------


async def test_repository_with_an_unknown_read_only_feature_is_refused(case: Case) -> None:
    case.add(case.writer.add_layer(GOOD))
    path = case.path / "repo/meta.json"
    document = json.loads(path.read_bytes())
    document["features"]["read-only-compatible"].append("from-the-future")
    path.unlink()
    path.write_text(json.dumps(document))
    with Repository.open_path(case.path / "repo") as repo:
        for work in (
            lambda: pull(repo, f"oci:{case.image}", platform=PLATFORM),
            lambda: import_layer(repo, sha256_content_digest(GOOD), LocalBlob(-1, 1, "not opened")),
        ):
            with pytest.raises(ReadOnlyRepositoryError, match="from-the-future") as caught:
                await work()  # type: ignore[no-untyped-call]
            assert caught.value.path == str(case.path / "repo")
    assert os.listdir(case.path / "repo") == ["meta.json"]


def mount(*arguments: str | Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts something on a new directory for the time of the test."""
    points: list[Path] = []

    def make(*arguments: str | Path) -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        mount(*arguments, point)
        points.append(point)
        return point

    yield make
    for point in reversed(points):
        subprocess.run(["umount", point], check=True, timeout=60)


async def test_repository_mounted_read_only_is_refused(case: Case, mounted: Callable[..., Path]) -> None:
    case.add(case.writer.add_layer(GOOD))
    point = mounted("--bind", "-o", "ro", case.path / "repo")
    with Repository.open_path(point) as repo, pytest.raises(ReadOnlyRepositoryError, match="mounted read-only"):
        await pull(repo, f"oci:{case.image}", platform=PLATFORM)
    assert os.listdir(point) == ["meta.json"]


@pytest.mark.parametrize("size", [0, 3000, 400_000, 4 << 20], ids=["inline", "small", "carried", "large"])
async def test_full_repository_stays_of_use(size: int, case: Case, mounted: Callable[..., Path]) -> None:
    """1 MiB for 4 MiB of files; *inline* fills it with the splitstream alone."""
    point = mounted("-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs")
    if size:
        files = b"".join(_member(size, number) for number in range((4 << 20) // size))
    else:
        files = bytes(1024) + random.Random(0).randbytes(2 << 20)
    case.add(case.writer.add_layer(files, "gzip", level=1))
    with Repository.init(point / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        with pytest.raises(OSError, match="No space left") as caught:
            await pull(repo, f"oci:{case.image}", platform=PLATFORM)
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value.filename).startswith(str(point / "repo/objects"))
        assert published(point / "repo") == []
        shutil.rmtree(point / "repo/objects")
    with Repository.open_path(point / "repo") as repo:
        await import_layer(repo, sha256_content_digest(b""), _nothing())


async def test_pull_may_run_out_of_space_at_every_step(case: Case, mounted: Callable[..., Path]) -> None:
    """Of files, of which a file system in memory can have a given number; each try gets one more."""
    case.add(case.writer.add_layer(GOOD), case.writer.add_layer(archive(size=70)))
    point = mounted("-t", "tmpfs", "-o", "nr_inodes=8,mode=755", "tmpfs")
    failures: list[OSError] = []
    with Repository.init(point / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        for number in range(8, 100):
            subprocess.run(["mount", "-o", f"remount,nr_inodes={number}", point], check=True, timeout=60)  # noqa: ASYNC221
            try:
                await pull(repo, f"oci:{case.image}", platform=PLATFORM, tag="t")
                break
            except OSError as error:
                failures.append(error)
            assert repo.fsck().ok
            assert repo.named_streams() == []
        assert [name for name, _ in repo.named_streams("oci")] == ["t"]
        assert repo.fsck().ok
    assert {error.errno for error in failures} == {errno.ENOSPC}
    places = {str(error.filename).removeprefix(f"{point}/repo/").partition("/")[0] for error in failures}
    # The lease, and what becomes a link, in the directory of the repository, may be met by it too.
    assert places - {".composefs-async", ""} == {"objects", "images", "streams"}


def _member(size: int, number: int) -> bytes:
    info = tarfile.TarInfo(f"f{number}")
    info.size = size
    return info.tobuf() + random.Random(number).randbytes(size) + bytes(-size % 512)


async def _nothing() -> Any:
    for piece in ():
        yield piece


async def test_repository_of_another_algorithm_takes_the_image_under_its_own(case: Case) -> None:
    """Object ids of one algorithm never reach a repository of another."""
    case.add(case.writer.add_layer(GOOD))
    first = await pull(case.repo, f"oci:{case.image}", platform=PLATFORM)
    with Repository.init(case.path / "other", algorithm=Algorithm.SHA512, insecure=True) as other:
        second = await pull(other, f"oci:{case.image}", platform=PLATFORM)
    assert first.manifest_digest == second.manifest_digest
    assert (first.manifest_id.algorithm, second.manifest_id.algorithm) == (Algorithm.SHA256, Algorithm.SHA512)
