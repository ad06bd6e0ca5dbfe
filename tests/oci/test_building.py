"""Images made of directories, tars and settings: the same wherever they are built, and what others make of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.errors import OciError, StreamNotFoundError
from composefs_async.oci import Platform
from composefs_async.oci.building.builder import build_image, edit_config
from composefs_async.oci.building.config import ConfigSettings
from composefs_async.oci.building.layer_tar import TreeOptions, file_tar, tree_tar
from composefs_async.oci.catalogue import open_image_async
from composefs_async.oci.erofs_images import image_tree_async
from composefs_async.oci.exporting.export import export_images
from composefs_async.repository import Repository
from composefs_async.tree import Directory, InlineFile

pytestmark = pytest.mark.anyio


def clone(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def opened(content: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(content))


PLATFORM = Platform("linux", "amd64")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree, made in an order that is not that of the names."""
    root = tmp_path / "tree"
    for name in ("usr/bin", "etc", "long"):
        (root / name).mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"\x7fELF" * 1000)
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/alias")
    (root / "etc/motd").write_text("hello\n")
    (root / "etc/link").symlink_to("motd")
    (root / "long" / ("n" * 200)).write_bytes(b"")
    (root / "long/ä").write_bytes(b"x")
    (root / "long" / os.fsdecode(b"\xff")).write_bytes(b"y")
    os.mkfifo(root / "etc/fifo")
    for path in [root, *root.rglob("*")]:
        os.utime(path, (2_000_000_000, 2_000_000_000.75), follow_symlinks=False)
    return root


@pytest.fixture
async def repo(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.init_async(tmp_path / "repo", insecure=True) as opened:
        yield opened


async def built(repo: Repository, tree: Path, tag: str = "app:1", **options: Any) -> str:
    async with build_image(repo, platform=PLATFORM, created=0) as builder:
        await builder.add_directory(tree, owner=(0, 0), **options)
        builder.config(
            ConfigSettings(entrypoint=["/bin/tool"], env={"A": "1"}, labels={"b": "2", "a": "1"}, user="1000")
        )
        builder.annotations({"org.opencontainers.image.title": "app"})
        return (await builder.commit(tag)).manifest_digest


async def test_same_tree_makes_the_same_image(repo: Repository, tree: Path, tmp_path: Path) -> None:
    first = await built(repo, tree)
    copy = tmp_path / "copy"
    clone(tree, copy)
    previous = os.umask(0o077)
    try:
        assert await built(repo, copy, "app:2") == first
    finally:
        os.umask(previous)


async def test_entries_of_a_tree(tree: Path) -> None:
    archive = opened(b"".join(tree_tar(tree, TreeOptions(owner=(1, 2), latest=5))))
    found = [(info.name, info.type, info.mode, info.size, info.linkname) for info in archive]
    assert found == [
        ("etc", tarfile.DIRTYPE, 0o755, 0, ""),
        ("etc/fifo", tarfile.FIFOTYPE, 0o644, 0, ""),
        ("etc/link", tarfile.SYMTYPE, 0o777, 0, "motd"),
        ("etc/motd", tarfile.REGTYPE, 0o644, 6, ""),
        ("long", tarfile.DIRTYPE, 0o755, 0, ""),
        ("long/" + "n" * 200, tarfile.REGTYPE, 0o644, 0, ""),
        ("long/ä", tarfile.REGTYPE, 0o644, 1, ""),
        ("long/" + os.fsdecode(b"\xff"), tarfile.REGTYPE, 0o644, 1, ""),
        ("usr", tarfile.DIRTYPE, 0o755, 0, ""),
        ("usr/bin", tarfile.DIRTYPE, 0o755, 0, ""),
        ("usr/bin/alias", tarfile.REGTYPE, 0o4755, 4000, ""),
        ("usr/bin/tool", tarfile.LNKTYPE, 0o4755, 0, "usr/bin/alias"),
    ]
    assert {(info.uid, info.gid, info.mtime) for info in archive} == {(1, 2, 5)}


async def test_place_and_patterns(tree: Path) -> None:
    options = TreeOptions(at="/opt/app", exclude=["usr", "*/n*"], latest=0)
    archive = opened(b"".join(tree_tar(tree, options)))
    names = archive.getnames()
    assert names[:4] == ["opt", "opt/app", "opt/app/etc", "opt/app/etc/fifo"]
    assert [name for name in names if "usr" in name or "nnn" in name] == []


async def test_attributes_are_kept_but_those_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    path = tmp_path / "t" / ("long" * 40)
    path.write_bytes(b"x")
    try:
        os.setxattr(path, "user.b", b"\xff\0binary")
        os.setxattr(path, "user.overlay.x", b"local")
    except OSError:
        pytest.skip("this file system has no user attributes")
    content = b"".join(tree_tar(tmp_path / "t", TreeOptions(latest=0)))
    assert (content.count(b"SCHILY.xattr."), b"SCHILY.xattr.user.b=\xff\0binary\n" in content) == (1, True)
    assert b"".join(tree_tar(tmp_path / "t", TreeOptions(latest=0, xattrs="none"))).count(b"SCHILY") == 0
    assert opened(content).getnames() == ["long" * 40]


async def test_config_and_manifest(repo: Repository, tree: Path) -> None:
    digest = await built(repo, tree)
    image = await open_image_async(repo, "app:1")
    document = json.loads(image.config_raw)
    assert image.config is not None
    assert (image.manifest.digest, image.config_raw) == (digest, json.dumps(document, separators=(",", ":")).encode())
    assert document == {
        "created": "1970-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": "1000",
            "Env": ["A=1"],
            "Entrypoint": ["/bin/tool"],
            "Labels": {"a": "1", "b": "2"},
        },
        "rootfs": {"type": "layers", "diff_ids": list(image.config.diff_ids)},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "composefs-async oci build"}],
    }
    assert image.manifest.annotations == {"org.opencontainers.image.title": "app"}


async def test_base_layers_and_whiteouts(repo: Repository, tree: Path, tmp_path: Path) -> None:
    await built(repo, tree)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        made.addfile(tarfile.TarInfo("srv"), None)
    (tmp_path / "layer.tar").write_bytes(tar.getvalue())
    async with build_image(repo, base="app:1", created=1_700_000_000) as builder:
        await builder.add_files({"/etc/motd": b"new\n", "opt/x/y": b""})
        await builder.remove("/usr/bin/tool", "long")
        await builder.add_tar(tmp_path / "layer.tar")
        builder.config(ConfigSettings(cmd=["-v"]))
        await builder.commit("app:2")
    image = await open_image_async(repo, "app:2")
    root = await image_tree_async(repo, image)
    etc, usr = root.children[b"etc"], root.children[b"usr"]
    assert isinstance(etc, Directory)
    assert isinstance(usr, Directory)
    motd, tools = etc.children[b"motd"], usr.children[b"bin"]
    assert isinstance(motd, InlineFile)
    assert isinstance(tools, Directory)
    assert (motd.content, set(tools.children), b"long" in root.children) == (b"new\n", {b"alias"}, False)
    document = json.loads(image.config_raw)
    assert (document["config"]["Entrypoint"], document["config"]["Cmd"]) == (["/bin/tool"], ["-v"])
    assert (len(document["history"]), document["created"]) == (4, "2023-11-14T22:13:20Z")


async def test_settings_of_an_image_are_changed_alone(repo: Repository, tree: Path) -> None:
    await built(repo, tree)
    settings = ConfigSettings(entrypoint=["/bin/sh"], env={"A": "2", "B": "3"}, exposed=["80/tcp"], raw={"X": 1})
    result = await edit_config(repo, "app:1", settings, tag="app:2", created=0)
    before, after = await open_image_async(repo, "app:1"), await open_image_async(repo, "app:2")
    assert before.layers == after.layers
    assert result.stats.layers_imported == 0
    assert json.loads(after.config_raw)["config"] == {
        "User": "1000",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["A=2", "B=3"],
        "Entrypoint": ["/bin/sh"],
        "Labels": {"a": "1", "b": "2"},
        "X": 1,
    }


async def test_time_is_that_of_the_environment(repo: Repository, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    async with build_image(repo) as builder:
        await builder.add_directory(tree)
        await builder.commit("app:1")
    assert json.loads((await open_image_async(repo, "app:1")).config_raw)["created"] == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(OciError, match="no number of seconds"):
        async with build_image(repo):
            raise AssertionError


async def test_what_cannot_be_built(repo: Repository, tmp_path: Path) -> None:
    async with build_image(repo) as builder:
        with pytest.raises(OciError, match="needs a layer"):
            await builder.commit("x")
        with pytest.raises(OciError, match="no layer is below"):
            await builder.remove("x")
        with pytest.raises(FileNotFoundError):
            await builder.add_tar(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            await builder.add_directory(tmp_path / "none")
        with pytest.raises(OciError, match="no path of a file"):
            await builder.add_files({"../x": b""})
    with pytest.raises(StreamNotFoundError):
        async with build_image(repo, base="none"):
            raise AssertionError
    assert b"".join(file_tar({"b": b"1", "a": b""}, mode=0o600, mtime=0)).count(b"ustar") == 2


def test_image_is_built_and_written_from_the_command_line(
    tree: Path, tmp_path: Path, tool: Callable[[str], Path]
) -> None:
    def run(*arguments: object, stdin: bytes = b"") -> bytes:
        command = [sys.executable, "-W", "error", "-m", "composefs_async", "--repo", tmp_path / "r", *arguments]
        return subprocess.run(list(map(str, command)), input=stdin, stdout=subprocess.PIPE, check=True).stdout

    run("init", "--insecure")
    tar = b"".join(file_tar({"etc/from-tar": b"x"}, mode=0o644, mtime=0))
    options = ["--entrypoint", '["/bin/tool"]', "--env", "A=1", "--label", "k=v", "--platform", "linux/amd64"]
    digest = run("oci", "build", "app:1", "--layer", "-", "--directory", f"{tree}:/app", *options, stdin=tar)
    assert run("oci", "build", "app:2", "--layer", "-", "--directory", f"{tree}:/app", *options, stdin=tar) == digest
    assert run("oci", "config", "app:1", "app:3", "--workdir", "/app") != digest
    run("oci", "copy", "app:1", f"oci:{tmp_path}/lay:t", "--layers", "gzip")
    program = [tool("umoci"), "unpack", "--rootless", "--image", f"{tmp_path}/lay:t", tmp_path / "bundle"]
    subprocess.run(program, check=True, capture_output=True)
    root = tmp_path / "bundle/rootfs"
    assert (root / "app/etc/motd").read_text() == "hello\n"
    assert (root / "app/usr/bin/tool").samefile(root / "app/usr/bin/alias")
    assert (root / "etc/from-tar").read_bytes() == b"x"


async def test_built_image_goes_to_an_archive(repo: Repository, tree: Path, tmp_path: Path) -> None:
    digest = await built(repo, tree)
    (result,) = await export_images(repo, ["app:1"], f"oci-archive:{tmp_path}/a.tar")
    assert (result.manifest_digest, result.original_digest) == (digest, digest)
    await anyio.lowlevel.checkpoint()
