"""Looking into layers that are stored."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm
from composefs_async.errors import DigestMismatchError, SplitstreamError, StreamNotFoundError
from composefs_async.naming import manifest_stream
from composefs_async.oci import Platform, import_layer, pull, stored_layers
from composefs_async.oci.stored_layers import LayerInfo
from composefs_async.oci.tar.members import EntryType
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
BASIC = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"
LAYER = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"
UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, insecure=True) as repo:
        anyio.run(partial(pull, repo, f"oci:{LAYOUTS}/basic", platform=Platform("linux", "amd64")))
    return path


@pytest.fixture
def repo(_made: Path, tmp_path: Path) -> Iterator[Repository]:
    """With the image ``basic``."""
    shutil.copytree(_made, tmp_path / "repo", symlinks=True)
    with Repository.open_path(tmp_path / "repo") as repository:
        yield repository


def test_layer_is_what_it_was(repo: Repository) -> None:
    pieces = list(stored_layers.layer_content(repo, LAYER))
    assert f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}" == LAYER
    assert max(map(len, pieces)) <= 1 << 20


def test_layer_under_a_wrong_name_is_given_out_and_refused(repo: Repository) -> None:
    repo.register_stream(stored_layers.layer_info(repo, LAYER).stream_id, f"oci-layer-{UNKNOWN}")
    pieces: list[bytes] = []
    with pytest.raises(DigestMismatchError, match=LAYER):
        pieces.extend(stored_layers.layer_content(repo, UNKNOWN))
    assert sum(map(len, pieces)) == 102_400


def test_layer_is_described(repo: Repository) -> None:
    stream_id = repo.has_stream(f"oci-layer-{LAYER}")
    assert stream_id is not None
    assert stored_layers.layer_info(repo, LAYER) == LayerInfo(LAYER, stream_id, 102_400, 24, 10, 84_439, 17_961)


def test_members_are_listed_in_the_order_of_the_archive(repo: Repository) -> None:
    entries = list(stored_layers.layer_entries(repo, LAYER))
    assert [entry.path for entry in entries[:3]] == [b"etc", b"run", b"usr"]
    assert [(entry.path, entry.link) for entry in entries if entry.type is EntryType.HARDLINK] == [
        (b"usr/bin/tool2", b"usr/bin/tool")
    ]
    assert len(entries) == 24


def test_dump_has_a_line_for_each_member(repo: Repository) -> None:
    lines = b"".join(stored_layers.layer_dump(repo, LAYER)).splitlines()
    assert len(lines) == 24
    assert lines[0] == b"/etc 0 40755 1 0 0 0 1700000000.0 - - -"
    assert lines[6] == b"/etc/passwd 30 100644 1 0 0 0 1700000000.0 - root:x:0:0:root:/root:/bin/sh\\n -"
    assert b"/usr/bin/tool2 0 @120000 - - - - 0.0 /usr/bin/tool - -" in lines


async def _nothing_else(archive: bytes) -> AsyncIterator[bytes]:
    yield archive


@pytest.mark.anyio
async def test_dump_has_a_line_of_its_own_for_each_kind(repo: Repository, tar: Any) -> None:
    large = b"content" * 10
    device = {"device": (b"0000005\0", b"0000001\0")}
    archive = b"".join(
        [
            tar.member(b"d/", kind=b"5", mode=0o1777),
            tar.member(b"d/small", b"a b"),
            tar.member(b"d/large", large, mtime=7, uid=1, gid=2),
            tar.member(b"d/link", kind=b"2", link=b"/to"),
            tar.member(b"d/hard", kind=b"1", link=b"d/small"),
            tar.member(b"d/tty", kind=b"3", **device),
            tar.member(b"d/disk", kind=b"4", **device),
            tar.member(b"d/pipe", kind=b"6"),
            tar.end,
        ]
    )
    diff_id = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    await import_layer(repo, diff_id, _nothing_else(archive))
    object_id = fsverity.digest(large, repo.algorithm)
    assert b"".join(stored_layers.layer_dump(repo, diff_id)).decode().splitlines() == [
        "/d 0 41777 1 0 0 0 0.0 - - -",
        "/d/small 3 100644 1 0 0 0 0.0 - a\\x20b -",
        f"/d/large 70 100644 1 1 2 0 7.0 {object_id.path} - {object_id.hex()}",
        "/d/link 3 120644 1 0 0 0 0.0 /to - -",
        "/d/hard 0 @120000 - - - - 0.0 /d/small - -",
        "/d/tty 0 20644 1 0 0 1281 0.0 - - -",
        "/d/disk 0 60644 1 0 0 1281 0.0 - - -",
        "/d/pipe 0 10644 1 0 0 0 0.0 - - -",
    ]


LOOKS: list[Callable[[Repository, str], Any]] = [
    lambda repo, name: list(stored_layers.layer_content(repo, name)),
    lambda repo, name: list(stored_layers.layer_entries(repo, name)),
    lambda repo, name: list(stored_layers.layer_dump(repo, name)),
    stored_layers.layer_info,
]


@pytest.mark.parametrize("look", LOOKS, ids=["content", "entries", "dump", "info"])
def test_layer_that_is_not_there_or_none_is_named(look: Callable[[Repository, str], Any], repo: Repository) -> None:
    with pytest.raises(StreamNotFoundError, match=f"layer not found: {UNKNOWN}"):
        look(repo, UNKNOWN)
    manifest = repo.has_stream(manifest_stream(BASIC))
    assert manifest is not None
    repo.register_stream(manifest, f"oci-layer-{UNKNOWN}")
    with pytest.raises(SplitstreamError):
        look(repo, UNKNOWN)


# -- the async forms ---------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leaks")
async def test_async_forms_give_the_same(repo: Repository) -> None:
    assert await stored_layers.layer_info_async(repo, LAYER) == stored_layers.layer_info(repo, LAYER)
    content = b"".join([piece async for piece in stored_layers.layer_content_async(repo, LAYER)])
    assert content == b"".join(stored_layers.layer_content(repo, LAYER))
    dump = [line async for line in stored_layers.layer_dump_async(repo, LAYER)]
    assert dump == list(stored_layers.layer_dump(repo, LAYER))
    entries = [entry async for entry in stored_layers.layer_entries_async(repo, LAYER)]
    assert entries == list(stored_layers.layer_entries(repo, LAYER))


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leaks")
async def test_members_that_nobody_wants_to_the_end_leave_no_file_open(repo: Repository) -> None:
    members = stored_layers.layer_entries_async(repo, LAYER)
    assert (await anext(members)).path == b"etc"
    await members.aclose()  # type: ignore[attr-defined]
