"""Writing OCI image directories and the archives in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.errors import ImageNotFoundError, OciError
from composefs_async.oci.documents import Descriptor, ImageLayer, LayerCompression
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform, host_platform
from composefs_async.oci.sources import OciLayoutSource, ResolvedImage
from composefs_async.oci.tar.writer import LayerSink, WrittenLayer, tar_directories, tar_paths

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

AMD64 = Platform("linux", "amd64")
TAR = b"".join(number.to_bytes(4, "little") for number in range(5000))
COMPRESSIONS: tuple[LayerCompression, ...] = ("none", "gzip", "zstd")
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"


def blob(directory: Path, descriptor: Descriptor) -> bytes:
    return (directory / "blobs" / descriptor.digest.replace(":", "/")).read_bytes()


def unpacked(packed: bytes, compression: LayerCompression) -> bytes:
    match compression:
        case "none":
            return packed
        case "gzip":
            return gzip.decompress(packed)
        case "zstd":
            return zstd.decompress(packed)


def resolve(directory: Path, **wanted: Any) -> ResolvedImage:
    async def run() -> ResolvedImage:
        return await OciLayoutSource(directory).resolve(**wanted)

    return anyio.run(run)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("member_size", [None, 1, 999, len(TAR), len(TAR) + 1])
@pytest.mark.parametrize("level", [None, 1])
def test_layer_is_packed_and_named(
    tmp_path: Path, compression: LayerCompression, member_size: int | None, level: int | None
) -> None:
    tar = TAR[:300] if member_size == 1 else TAR
    layer = OciLayoutWriter(tmp_path).add_layer(tar, compression, level=level, member_size=member_size)
    packed = blob(tmp_path, layer.descriptor)
    suffix = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}[compression]
    assert unpacked(packed, compression) == tar
    assert layer == WrittenLayer(
        Descriptor(
            f"application/vnd.oci.image.layer.v1.tar{suffix}",
            f"sha256:{hashlib.sha256(packed).hexdigest()}",
            len(packed),
        ),
        f"sha256:{hashlib.sha256(tar).hexdigest()}",
    )


@pytest.mark.parametrize(
    ("compression", "magic"), [("gzip", b"\x1f\x8b\x08\x00\0\0\0\0"), ("zstd", b"\x28\xb5\x2f\xfd")]
)
def test_members_start_where_they_should(tmp_path: Path, compression: LayerCompression, magic: bytes) -> None:
    writer = OciLayoutWriter(tmp_path)
    packed = blob(tmp_path, writer.add_layer(TAR, compression, member_size=5000).descriptor)
    single = blob(tmp_path, writer.add_layer(TAR, compression).descriptor)
    assert (packed.count(magic), single.count(magic)) == (4, 1)
    assert packed.startswith(magic)


@pytest.mark.parametrize("form", ["bytes", "path", "str", "file"])
def test_layer_is_taken_in_any_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "layer.tar"
    path.write_bytes(TAR)
    forms: dict[str, bytes | Path | str | io.BytesIO] = {
        "bytes": TAR,
        "path": path,
        "str": str(path),
        "file": io.BytesIO(TAR),
    }
    assert OciLayoutWriter(tmp_path / "image").add_layer(forms[form]).diff_id == DIFF_ID


def test_empty_layer_is_a_member(tmp_path: Path) -> None:
    layer = OciLayoutWriter(tmp_path).add_layer(b"")
    assert gzip.decompress(blob(tmp_path, layer.descriptor)) == b""
    assert layer.descriptor.size > 0


def test_layer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    before = contents(tmp_path)
    sinks: list[LayerSink] = []

    def fail() -> None:
        with writer.layer() as sink:
            sinks.append(sink)
            sink.write(TAR)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="the layer is not finished"):
        _ = sinks[0].layer


def test_member_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="member_size is 0, not positive"):
        OciLayoutWriter(tmp_path).add_layer(TAR, member_size=0)


# -- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
def test_image_is_read_back(tmp_path: Path, docker: bool) -> None:
    writer = OciLayoutWriter(tmp_path, docker=docker)
    layers = [writer.add_layer(TAR, compression) for compression in COMPRESSIONS]
    written = writer.add_image(
        layers, tag="t", platform=Platform("linux", "arm", "v6"), config={"author": "me"}, annotations={"a": "b"}
    )
    found = resolve(tmp_path, tag="t", platform=Platform("linux", "arm", "v7"))
    assert found.layers == tuple(
        ImageLayer(layer.diff_id, layer.descriptor, compression)
        for layer, compression in zip(layers, COMPRESSIONS, strict=True)
    )
    assert (found.manifest.digest, found.manifest.media_type) == (written.digest, written.media_type)
    assert ("docker" in found.manifest.media_type) == ("docker" in found.manifest.config.media_type) == docker
    assert all(("docker" in layer.descriptor.media_type) == docker for layer in layers)
    assert found.manifest.annotations == {"a": "b"}
    assert found.config
    assert found.config.platform == Platform("linux", "arm", "v6")
    assert json.loads(found.config_raw)["author"] == "me"


def test_image_is_for_this_machine_unless_told(tmp_path: Path) -> None:
    OciLayoutWriter(tmp_path).add_image([])
    found = resolve(tmp_path)
    assert found.config
    assert (found.config.platform, found.layers) == (host_platform(), ())


@pytest.mark.parametrize("docker", [False, True])
def test_index_is_read_back(tmp_path: Path, docker: bool) -> None:
    writer = OciLayoutWriter(tmp_path, docker=docker)
    images = [
        writer.add_image([writer.add_layer(name.encode())], tag=None, platform=Platform("linux", name))
        for name in ("amd64", "arm64")
    ]
    writer.add_index(images, tag="multi")
    for image in images:
        assert resolve(tmp_path, tag="multi", platform=image.platform).manifest.digest == image.digest


def test_artifact_is_read_back(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    writer.add_artifact([("text/plain", b"one"), ("text/x", b"two")], "application/x", tag="a")
    found = resolve(tmp_path, tag="a", platform=AMD64)
    assert [(blob(tmp_path, layer.descriptor), layer.compression) for layer in found.layers] == [
        (b"one", None),
        (b"two", None),
    ]
    assert (found.config, found.config_raw, found.manifest.artifact_type) == (None, b"{}", "application/x")


def test_directory_is_valid_after_each_call(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    with pytest.raises(ImageNotFoundError, match="there are no manifests"):
        resolve(tmp_path)
    writer.add_image([writer.add_layer(TAR)], tag="one", platform=AMD64)
    assert resolve(tmp_path, platform=AMD64).manifest
    with pytest.raises(OciError, match="it is an image directory already"):
        OciLayoutWriter(tmp_path)


def test_same_calls_give_the_same_bytes(tmp_path: Path) -> None:
    def write(directory: Path) -> dict[str, bytes]:
        writer = OciLayoutWriter(directory)
        layers = [writer.add_layer(TAR, compression) for compression in COMPRESSIONS]
        writer.add_index([writer.add_image(layers, tag="a", platform=AMD64)], tag="b")
        return contents(directory)

    assert write(tmp_path / "1") == write(tmp_path / "2")


# -- archives of real files --------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "b" / "deep").mkdir(parents=True)
    (root / "a").mkdir()
    (root / "a" / "file").write_bytes(b"content")
    (root / "a" / "hard").hardlink_to(root / "a" / "file")
    (root / "a" / "link").symlink_to("../b")
    (root / "b" / "deep" / ("x" * 200)).write_bytes(b"")
    (root / "b" / os.fsdecode(b"\xff")).write_bytes(b"odd name")
    for path in (root, *root.rglob("*")):
        os.utime(path, ns=(1, 1_700_000_000_500_000_000), follow_symlinks=False)
    return root


def members(archive: bytes) -> list[tuple[str, bytes, str]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(member.name, member.type, member.linkname) for member in tar]


def test_trees_become_an_archive(tree: Path) -> None:
    out = io.BytesIO()
    assert tar_directories([tree / "a", tree / "b"], out, root=tree) == 8
    assert members(out.getvalue()) == [
        ("a", tarfile.DIRTYPE, ""),
        ("a/file", tarfile.REGTYPE, ""),
        ("a/hard", tarfile.LNKTYPE, "a/file"),
        ("a/link", tarfile.SYMTYPE, "../b"),
        ("b", tarfile.DIRTYPE, ""),
        ("b/deep", tarfile.DIRTYPE, ""),
        ("b/deep/" + "x" * 200, tarfile.REGTYPE, ""),
        ("b/\udcff", tarfile.REGTYPE, ""),
    ]
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        file = tar.extractfile("b/\udcff")
        assert file
        assert file.read() == b"odd name"
        assert {(member.mtime, member.uname, member.gname) for member in tar} == {(1_700_000_000, "", "")}


def test_directories_above_a_path_come_first_and_once(tree: Path) -> None:
    out = io.BytesIO()
    paths = [tree / "b" / "deep" / ("x" * 200), tree / "b" / "deep", tree / "a" / "hard"]
    assert tar_paths(paths, out, root=tree) == 5
    assert [name for name, _, _ in members(out.getvalue())] == ["b", "b/deep", "b/deep/" + "x" * 200, "a", "a/hard"]


def test_archive_depends_on_the_files_alone(tree: Path, tmp_path: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    tar_directories([tree], first, root=tree)
    tar_directories([tree], second, root=str(tree))
    assert first.getvalue() == second.getvalue()
    assert len(first.getvalue()) % 10240 == 0


def test_path_outside_the_root_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not in the subpath of"):
        tar_paths([tmp_path], io.BytesIO(), root=tree)


def test_tree_goes_straight_into_a_layer(tree: Path, tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path / "image")
    with writer.layer() as sink:
        assert isinstance(sink, LayerSink)
        tar_directories([tree], sink, root=tree)
    out = io.BytesIO()
    tar_directories([tree], out, root=tree)
    assert gzip.decompress(blob(tmp_path / "image", sink.layer.descriptor)) == out.getvalue()
    assert sink.layer.diff_id == f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"
