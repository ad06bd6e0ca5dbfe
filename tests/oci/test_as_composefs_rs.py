"""What composefs-rs makes of layers that it reads otherwise: reported, explained, and computed as it does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async.cli import app
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.explain.search import explain
from composefs_async.erofs.writer import build_image
from composefs_async.errors import FormatError
from composefs_async.oci.as_composefs_rs import tree_as_composefs_rs
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.erofs_images import image_tree
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform
from composefs_async.progress import LayerDiffersFromPeers, ProgressEvent, to_json
from composefs_async.repository import Repository
from composefs_async.tree.walk import walk

from .conftest import Tar

pytestmark = pytest.mark.anyio

PLATFORM = Platform("linux", "amd64")
V7 = bytes(8)


def usr(tar: Tar) -> bytes:
    return tar.header(b"usr/", b"5", mode=0o755)


def layers(tar: Tar) -> dict[str, tuple[list[bytes], str]]:
    """Those that both read, each in its way: the archives, and why they differ; empty if they do not."""
    hidden = tar.header(b"usr/hidden") + tar.member(b"usr/after", b"y" * 100)
    data = b"D" * 65 + bytes(447)
    return {
        "link with data": (
            [
                usr(tar)
                + tar.member(b"usr/a", b"x" * 300)
                + tar.header(b"usr/b", b"1", link=b"usr/a", size=300)
                + hidden
            ],
            "passes over 300 bytes behind a member that has no data (tar offset 1536)",
        ),
        "data that would be a file": (
            [usr(tar) + tar.header(b"usr/d", b"5", size=1024) + tar.header(b"usr/x", size=65) + data + hidden],
            "passes over 1024 bytes",
        ),
        "size in PAX": (
            [usr(tar) + tar.pax((b"size", b"512")) + tar.header(b"usr/s", b"2", link=b"t") + hidden],
            "passes over 512 bytes",
        ),
        "old directory": ([usr(tar) + tar.header(b"usr/bin/", b"\0", magic=V7)], "an old directory, marked by a slash"),
        "prefix": (
            [usr(tar) + tar.header(b"name", prefix=b"usr", magic=b"ustar\0\0\0")],
            r"ignores a name's prefix in a header of version b'\x00\x00'",
        ),
        "own whiteout": (
            [usr(tar), usr(tar) + tar.member(b"usr/a", b"x" * 70) + tar.header(b"usr/.wh.a")],
            "lets the whiteout 'usr/.wh.a' hide what its own layer has brought",
        ),
        "own opaque marker": (
            [usr(tar), usr(tar) + tar.header(b"usr/a") + tar.header(b"usr/.wh..wh..opq") + tar.header(b"usr/b")],
            "lets the whiteout 'usr/.wh..wh..opq' hide",
        ),
        "nothing": ([usr(tar) + tar.member(b"usr/a", b"x" * (1 << 20)), usr(tar) + tar.header(b"usr/.wh.a")], ""),
    }


NAMES = ["link with data", "data that would be a file", "size in PAX", "old directory", "prefix"]
NAMES += ["own whiteout", "own opaque marker", "nothing"]


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as made:
        yield made


def image_of(path: Path, archives: list[bytes]) -> str:
    writer = OciLayoutWriter(path)
    end = bytes(1024)
    writer.add_image([writer.add_layer(archive + end) for archive in archives], tag="t", platform=PLATFORM)
    return f"oci:{path}:t"


def id_of(repo: Repository) -> ObjectId:
    tree = tree_as_composefs_rs(repo, open_image(repo, "t"))
    return fsverity.digest(build_image(tree, repo.algorithm, 1), repo.algorithm)


@pytest.mark.parametrize("name", NAMES)
async def test_a_difference_is_reported_once_and_explained(
    name: str, tar: Tar, repo: Repository, tmp_path: Path
) -> None:
    archives, reason = layers(tar)[name]
    reference = image_of(tmp_path / "image", archives)
    for make_images in (False, True):  # the second one finds the layers
        events: list[ProgressEvent] = []
        await pull(repo, reference, tag="t", platform=PLATFORM, progress=events.append, make_images=make_images)
        found = [event for event in events if isinstance(event, LayerDiffersFromPeers)]
        # Of whiteouts only the tree knows.
        assert len(found) == bool(reason and (make_images or "own" not in name))
        assert all(
            event.reason.startswith("composefs-rs 0.9.0") or "composefs-rs 0.9.0" in event.reason for event in found
        )
        assert all(reason in event.reason for event in found)
    if found:
        assert to_json(found[0])["event"] == "layer-differs-from-peers"
    mine, wanted = image_tree(repo, open_image(repo, "t")), id_of(repo)
    theirs = lambda: tree_as_composefs_rs(repo, open_image(repo, "t"))  # noqa: E731
    causes = explain(mine, wanted, read_as_composefs_rs=theirs).causes
    assert [cause.name for cause in causes or ()] == (["read-as-composefs-rs"] if reason else [])


@pytest.mark.parametrize("name", NAMES)
async def test_ids_are_those_of_the_real_program(
    name: str, tar: Tar, repo: Repository, tmp_path: Path, tool: Callable[[str], Path]
) -> None:
    cfsctl, other = tool("cfsctl"), tmp_path / "other"
    image_of(tmp_path / "image", layers(tar)[name][0])
    await pull(repo, f"oci:{tmp_path}/image:t", tag="t", platform=PLATFORM)

    def run(*arguments: object) -> bytes:
        command = [str(each) for each in (cfsctl, "--repo", other, *arguments)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    run("init", "--insecure", "--algorithm", "fsverity-sha256-12", other)
    run("oci", "pull", f"oci:{tmp_path}/image:t", "t")
    assert run("oci", "compute-id", "t").split()[-1].decode() == id_of(repo).hex()


async def test_all_of_a_large_layer_is_read_alike(tar: Tar, repo: Repository, tmp_path: Path) -> None:
    files = b"".join(tar.member(b"usr/%d" % number, bytes([number]) * (number * 50_000)) for number in range(40))
    await pull(repo, image_of(tmp_path / "image", [usr(tar) + files]), tag="t", platform=PLATFORM)
    theirs, ours = tree_as_composefs_rs(repo, open_image(repo, "t")), image_tree(repo, open_image(repo, "t"))
    assert len(list(walk(theirs))) == 42
    assert build_image(theirs, repo.algorithm, 1) == build_image(ours, repo.algorithm, 1)


def refused(tar: Tar) -> dict[str, bytes]:
    unsigned = sum(tar.header(b"usr/\xe9", checksum=b" " * 8))
    return {
        "extension in an odd dialect": tar.member(b"p", tar.record(b"path", b"usr/a"), b"x", magic=V7) + tar.header(),
        "signed checksum": tar.header(b"usr/\xe9", checksum=b"%06o\0 " % (unsigned - 256)),
        "device without numbers": tar.header(b"usr/a", b"3", magic=V7),
        "empty record": tar.pax((b"mtime", b"")) + tar.header(b"usr/a"),
        "owner -1": tar.pax((b"uid", b"-1")) + tar.header(b"usr/a"),
        "sparse": tar.pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"99")) + tar.member(b"usr/a", b"x"),
        "unlisted parent": tar.header(b"usr/a/b"),
        "below a link": tar.header(b"usr/a", b"2", link=b"/usr") + tar.header(b"usr/a/b"),
        "two dots": tar.header(b"usr/../usr/a"),
        "whiteout below nothing": tar.header(b"usr/a/.wh.b"),
        "AUFS": tar.header(b".wh..wh.plnk/1.2") + tar.header(b"usr/a", b"1", link=b".wh..wh.plnk/1.2"),
        "run is a link": tar.header(b"run", b"2", link=b"usr"),
    }


async def test_what_it_refuses_is_refused(tar: Tar, repo: Repository, tmp_path: Path) -> None:
    for number, (name, members) in enumerate(refused(tar).items()):
        await pull(repo, image_of(tmp_path / str(number), [usr(tar) + members]), tag="t", platform=PLATFORM)
        with pytest.raises(FormatError) as caught:
            tree_as_composefs_rs(repo, open_image(repo, "t"))
        assert "layer sha256:" in str(caught.value) or "the image" in str(caught.value), name


async def test_commands_print_the_id_and_the_reason(
    tar: Tar, repo: Repository, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    await pull(repo, image_of(tmp_path / "image", layers(tar)["old directory"][0]), tag="t", platform=PLATFORM)

    def run(*words: str) -> tuple[int, str]:
        code = app.run(["--repo", str(tmp_path / "repo"), *words])
        return code, capsysbinary.readouterr().out.decode().strip()

    theirs = id_of(repo).hex()
    assert run("oci", "compute-id", "t", "--as-composefs-rs") == (0, theirs)
    assert run("oci", "compute-id", "t")[1] != theirs
    code, said = run("explain", "oci:t", "--expected-digest", theirs)
    assert code == 0
    assert "the layers were read as composefs-rs 0.9.0 reads them" in said
    assert "/usr/bin" in said
    assert run("oci", "compute-id", "t", "--as-composefs-rs", "--bootable")[0] == 2
