"""Images between repositories: on one machine, between algorithms, and over pipes, as ssh has them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    AlgorithmMismatchError,
    DigestMismatchError,
    FetchDamagedError,
    ImageNotFoundError,
    ObjectNotFoundError,
    StoreError,
    StoreFormatError,
)
from composefs_async.exchange.copying import copy, pull_from, push_to, ssh_command
from composefs_async.exchange.frames import (
    BODY_LIMIT,
    FrameParser,
    FrameType,
    bitmap,
    frame,
    json_frame,
    member,
    wanted,
)
from composefs_async.oci.catalogue import open_image
from composefs_async.repository import Repository

from .conftest import FILES, MORE, Images, noise, snapshot, text

pytestmark = pytest.mark.usefixtures("no_leaks")


def run(function: Any, *arguments: Any, **options: Any) -> Any:
    async def work() -> Any:
        return await function(*arguments, **options)

    return anyio.run(work)


def serving(repo: Repository) -> list[str]:
    """A command whose other end is a process with that repository, as ssh would start it."""
    return [sys.executable, "-m", "composefs_async", "--repo", repo.path, "serve"]


def objects(repo: Repository) -> list[Path]:
    return sorted(path for path in (Path(repo.path) / "objects").rglob("*") if path.is_file())


# -- one machine -------------------------------------------------------------------------------


def test_a_copy_has_the_same_bytes_and_names(images: Images) -> None:
    source, target = images.repository(), images.repository()
    images.add(source, "image", FILES, MORE)
    done = run(copy, source, target, "image")
    assert snapshot(Path(target.path)) == snapshot(Path(source.path))
    assert (done.objects_copied, done.objects_present, done.tag) == (len(objects(source)), 0, "image")
    again = run(copy, source, target, "image", tag="other")
    assert (again.objects_copied, again.objects_present) == (0, len(objects(source)))
    assert open_image(target, "other") == open_image(target, "image")
    assert target.fsck().ok
    assert target.leases() == []


def test_links_share_the_files(images: Images) -> None:
    source, target = images.repository(), images.repository()
    images.add(source, "image", FILES)
    run(copy, source, target, "image", link=True)
    assert [path.stat().st_ino for path in objects(source)] == [path.stat().st_ino for path in objects(target)]
    assert target.fsck().ok


def test_between_algorithms_the_layers_are_imported_again(images: Images, tmp_path: Path) -> None:
    source = images.repository()
    manifest = images.add(source, "image", FILES, MORE)
    with Repository.init(tmp_path / "sha256", algorithm=Algorithm.SHA256, insecure=True) as target:
        done = run(copy, source, target, "image")
        assert open_image(target, "image").manifest.digest == manifest
        assert done.root == f"oci-manifest-{manifest}"
        assert target.fsck().ok


def test_a_damaged_object_is_not_copied(images: Images) -> None:
    source, target = images.repository(), images.repository()
    images.add(source, "image", {"f": noise(5000, 1)})
    [path] = [path for path in objects(source) if path.stat().st_size == 5000]
    path.chmod(0o644)
    path.write_bytes(bytes(5000))
    with pytest.raises(ObjectNotFoundError):
        run(copy, source, target, "image")
    assert target.named_streams() == []
    with pytest.raises(ImageNotFoundError):
        run(copy, source, target, "nothing")


# -- pipes -------------------------------------------------------------------------------------


LARGE = {"large/a": noise(9_000_000, 1), "large/b": text(5_000_000, 2)}


def test_an_image_is_pulled_from_another_machine(images: Images) -> None:
    source, target = images.repository(), images.repository()
    images.add(source, "image", FILES, MORE, LARGE)
    done = run(pull_from, target, "image", serving(source))
    assert snapshot(Path(target.path)) == snapshot(Path(source.path))
    assert (done.objects_copied, done.objects_present) == (len(objects(source)), 0)
    again = run(pull_from, target, "image", serving(source), tag="again")
    assert (again.objects_copied, again.bytes_moved < 20_000) == (0, True)
    assert target.leases() == []


def test_an_image_is_pushed_to_another_machine(images: Images) -> None:
    source, target = images.repository(), images.repository()
    images.add(source, "base", FILES)
    images.add(source, "image", FILES, MORE)
    run(push_to, source, "base", serving(target))
    done = run(push_to, source, "image", serving(target), tag="mine")
    assert done.objects_copied < len(objects(source)) / 2 + 5
    assert open_image(target, "mine").manifest == open_image(source, "image").manifest
    assert target.fsck().ok


def test_what_is_expected_is_proven(images: Images) -> None:
    source, target = images.repository(), images.repository()
    manifest = images.add(source, "image", FILES)
    image_id = open_image(source, "image").image(1)
    assert image_id is not None
    run(pull_from, target, "image", serving(source), expect=manifest)
    run(pull_from, target, "image", serving(source), expect=image_id.text)
    empty = images.repository()
    with pytest.raises(DigestMismatchError):
        run(pull_from, empty, "image", serving(source), expect=ObjectId(bytes(64)).text)
    assert snapshot(Path(empty.path)) == {}


def test_errors_of_the_other_side_are_told(images: Images, tmp_path: Path) -> None:
    source, target = images.repository(), images.repository()
    images.add(source, "image", FILES)
    with pytest.raises(StoreError, match="the other side says: ImageNotFoundError: image not found: nothing"):
        run(pull_from, target, "nothing", serving(source))
    other = Repository.init(tmp_path / "sha256", algorithm=Algorithm.SHA256, insecure=True)
    with other, pytest.raises(AlgorithmMismatchError):
        run(pull_from, other, "image", serving(source))
    with pytest.raises(StoreError, match="ended"):
        run(pull_from, target, "image", ["false"])
    with pytest.raises(StoreError, match="No such file"):
        run(pull_from, target, "image", ["/no/such/program"])
    with pytest.raises(StoreFormatError, match="cannot be"):
        run(pull_from, target, "image", ["sh", "-c", "echo what is this; cat >/dev/null"])
    assert target.named_streams() == []


def test_a_sender_that_lies_leaves_no_name(images: Images) -> None:
    """Content of the right size that is not what its id says: the sender's own check is left out."""
    source, target = images.repository(), images.repository()
    images.add(source, "image", {"f": noise(9_000_000, 1)})
    [path] = [path for path in objects(source) if path.stat().st_size == 9_000_000]
    path.chmod(0o644)
    path.write_bytes(bytes(9_000_000))
    with pytest.raises(FetchDamagedError):
        run(pull_from, target, "image", serving(source))
    assert target.named_streams() == []


def test_a_pull_that_is_cancelled_ends_the_other_side(images: Images) -> None:
    target = images.repository()

    async def work() -> None:
        with anyio.move_on_after(0.3):
            await pull_from(target, "image", ["sh", "-c", "exec sleep 60"])

    anyio.run(work)
    assert target.named_streams() == []


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("ssh://host/srv/repo", ["ssh", "--", "host", "composefs-async --repo /srv/repo serve"]),
        ("ssh://me@host:22/a%20b", ["ssh", "-p", "22", "--", "me@host", "composefs-async --repo '/a b' serve"]),
        ("ssh://host/$(x)", ["ssh", "--", "host", "composefs-async --repo '/$(x)' serve"]),
    ],
)
def test_ssh_gets_one_command_that_no_shell_takes_apart(url: str, command: list[str]) -> None:
    assert ssh_command(url) == command
    assert ssh_command(url, "fake -x")[:2] == ["fake", "-x"]


@pytest.mark.parametrize("url", ["ssh://", "ssh://host", "ssh://host/", "ssh://u:p@host/x", "ssh://host:x/y", "x"])
def test_urls_that_cannot_be_are_refused(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        ssh_command(url)
    assert ":p@" not in str(caught.value)


# -- frames ------------------------------------------------------------------------------------


def test_frames_come_back_however_they_are_cut() -> None:
    sent = json_frame(FrameType.HELLO, a=1) + b"".join(member(5, 1, bytes(3 << 20))) + frame(FrameType.TABLE)
    for size in (1 << 20, 70_001):
        parser = FrameParser()
        found = [each for at in range(0, len(sent), size) for each in parser.feed(sent[at : at + size])]
        assert [kind for kind, _ in found] == [FrameType.HELLO, *[FrameType.MEMBER] * 3, FrameType.TABLE]
        assert [body[5] for kind, body in found if kind is FrameType.MEMBER] == [0, 0, 1]


@pytest.mark.parametrize("data", [b"\x09\0\0\0\0", b"\x01" + (BODY_LIMIT + 1).to_bytes(4, "little")])
def test_frames_that_cannot_be_are_refused_before_they_come(data: bytes) -> None:
    with pytest.raises(StoreFormatError):
        list(FrameParser().feed(data))


def test_bitmaps() -> None:
    assert wanted(bitmap([0, 9, 11], 12), 12) == [0, 9, 11]
    for body in (b"", b"\0\xf0", bytes(3)):
        with pytest.raises(StoreFormatError):
            wanted(body, 12)
