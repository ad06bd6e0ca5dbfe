"""Images of other tools: copied by skopeo between packings, built by umoci."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.importing.pull_result import PullResult
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.tar.writer import WrittenLayer
from composefs_async.repository import Repository

Tool = Callable[[str], Path]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def take(path: Path, reference: str) -> PullResult:
    async def work() -> PullResult:
        async with Repository.init(path, algorithm=Algorithm.SHA256, insecure=True) as repo:
            return await pull(repo, reference, tag="t")

    return anyio.run(work)


def merged(path: Path, diff_id: str) -> bytes:
    with Repository.open_path(path) as repo:
        return b"".join(repo.merge_splitstream(f"oci-layer-{diff_id}"))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs/usr/share"
    path.mkdir(parents=True)
    for number in range(30):
        (path / f"file{number}").write_bytes(b"%d\n" % number * 1000 * number)
    (path / "link").symlink_to("file1")
    return tmp_path / "rootfs"


def tar(rootfs: Path) -> bytes:
    """Ends with two blocks of zeros and no more: zstd:chunked loses what is behind them, and the diff_id with it."""
    command = ["tar", "-c", "-b", "1", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-C", str(rootfs), "usr"]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.fixture
def image(rootfs: Path, tmp_path: Path) -> tuple[str, list[WrittenLayer]]:
    writer = OciLayoutWriter(tmp_path / "image")
    layers = [writer.add_layer(tar(rootfs), "gzip")]
    (rootfs / "usr/more").write_bytes(b"more" * 1000)
    layers.append(writer.add_layer(tar(rootfs), "none"))
    writer.add_image(layers)
    return f"oci:{tmp_path}/image:latest", layers


@pytest.mark.parametrize("packing", ["gzip", "zstd", "zstd:chunked"])
def test_image_that_skopeo_packed_again_has_the_same_layers(
    packing: str, image: tuple[str, list[WrittenLayer]], tmp_path: Path, tool: Tool
) -> None:
    reference, layers = image
    command = ["copy", "--dest-compress-format", packing, "--dest-compress", reference, f"dir:{tmp_path}/dir"]
    copied = f"oci:{tmp_path}/copy:latest"
    run(tool("skopeo"), "copy", "--dest-oci-accept-uncompressed-layers", reference, copied)
    plain = take(tmp_path / "plain", copied)
    run(tool("skopeo"), *command)
    files = {path.name for path in (tmp_path / "dir").iterdir()}
    manifest = json.loads((tmp_path / "dir/manifest.json").read_bytes())
    assert {layer["digest"].partition(":")[2] for layer in manifest["layers"]} <= files
    blobs = tmp_path / "packed/blobs/sha256"
    blobs.mkdir(parents=True)
    for name in files - {"manifest.json", "version"}:
        (tmp_path / "dir" / name).rename(blobs / name)
    raw = (tmp_path / "dir/manifest.json").read_bytes()
    (blobs / digest(raw).partition(":")[2]).write_bytes(raw)
    (tmp_path / "packed/oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    entry = {"mediaType": manifest["mediaType"], "digest": digest(raw), "size": len(raw)}
    (tmp_path / "packed/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    packed = take(tmp_path / "repo", f"oci:{tmp_path}/packed")
    for found in (plain, packed):
        assert [layer.diff_id for layer in found.layers] == [layer.diff_id for layer in layers]
    assert [layer.stream_id for layer in plain.layers] == [layer.stream_id for layer in packed.layers]
    for layer in layers:
        assert digest(merged(tmp_path / "repo", layer.diff_id)) == layer.diff_id


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_image_in_the_form_that_skopeo_made(
    form: str, image: tuple[str, list[WrittenLayer]], tmp_path: Path, tool: Tool
) -> None:
    reference, layers = image
    run(tool("skopeo"), "copy", "--format", form, reference, f"dir:{tmp_path}/dir")
    run(tool("skopeo"), "copy", f"dir:{tmp_path}/dir", f"oci:{tmp_path}/copy:tag")
    found = take(tmp_path / "repo", f"oci:{tmp_path}/copy:tag")
    assert [layer.diff_id for layer in found.layers] == [layer.diff_id for layer in layers]


def umoci_layers(path: Path) -> list[tuple[str, bytes]]:
    """The diff_ids of an image of umoci's, and what its blobs unpack to."""

    def blob(descriptor: Any) -> bytes:
        return (path / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()

    index = json.loads((path / "index.json").read_bytes())
    manifest = json.loads(blob(index["manifests"][-1]))
    config = json.loads(blob(manifest["config"]))
    tars = [gzip.decompress(blob(layer)) for layer in manifest["layers"]]
    return list(zip(config["rootfs"]["diff_ids"], tars, strict=True))


def test_image_of_umoci_is_pulled(rootfs: Path, tmp_path: Path, tool: Tool) -> None:
    umoci = tool("umoci")
    run(umoci, "init", "--layout", tmp_path / "image")
    run(umoci, "new", "--image", f"{tmp_path}/image:t")
    assert take(tmp_path / "empty", f"oci:{tmp_path}/image:t").layers == ()
    (tmp_path / "odd").write_bytes(b"x" * 777)
    run(umoci, "insert", "--image", f"{tmp_path}/image:t", rootfs / "usr", "/usr")
    run(umoci, "insert", "--image", f"{tmp_path}/image:t", tmp_path / "odd", "/no/parents/odd")
    layers = umoci_layers(tmp_path / "image")
    found = take(tmp_path / "repo", f"oci:{tmp_path}/image:t")
    assert [layer.diff_id for layer in found.layers] == [diff_id for diff_id, _ in layers]
    for diff_id, content in layers:
        assert merged(tmp_path / "repo", diff_id) == content
    assert len(layers[-1][1]) % 512, "umoci insert leaves the padding of the last file away"
