"""Plain tars as an image: what is made of them, however they come, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm
from composefs_async.errors import ImageNotFoundError, InvalidNameError, OciError, TarError
from composefs_async.oci import Platform, open_source, pull
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.sources.opening import check_reference
from composefs_async.oci.stored_layers import layer_content
from composefs_async.repository import Repository

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]
PLATFORM = Platform("linux", "riscv64")


def tar(*names: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3000
            archive.addfile(member, io.BytesIO(name.encode().ljust(3000, b".")))
    return made.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    lower, upper = tmp_path / "lower.tar", tmp_path / "upper.tar.gz"
    lower.write_bytes(tar("a", "b"))
    upper.write_bytes(gzip.compress(tar("b", "c")))
    os.utime(lower, (5, 86400))
    os.utime(upper, (5, 2 * 86400))
    return [lower, upper]


async def test_each_tar_is_a_layer_and_the_newest_file_is_the_date(repo: Repository, files: list[Path]) -> None:
    reference = f"tarball:{files[0]}:{files[1]}"
    result = await pull(repo, reference, tag="made", platform=PLATFORM)
    image = open_image(repo, "made")
    diff_ids = [digest(tar("a", "b")), digest(tar("b", "c"))]
    assert json.loads(image.config_raw) == {
        "created": "1970-01-03T00:00:00Z",
        "architecture": "riscv64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [
            {"created": "1970-01-03T00:00:00Z", "created_by": "tarball lower.tar"},
            {"created": "1970-01-03T00:00:00Z", "created_by": "tarball upper.tar.gz"},
        ],
    }
    assert [each.digest for each in image.manifest.layers] == diff_ids
    assert b"".join(layer_content(repo, diff_ids[1])) == tar("b", "c")
    assert (result.manifest_made, repo.fsck().ok) == (True, True)
    assert (await pull(repo, reference, tag="again", platform=PLATFORM)).manifest_digest == result.manifest_digest


@pytest.mark.parametrize("packed", [False, True])
async def test_a_pipe_gives_what_the_file_gives(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    content = gzip.compress(tar("a")) if packed else tar("a")
    read, write = os.pipe()

    def send() -> None:
        with open(write, "wb") as pipe:
            pipe.write(content)

    sender = threading.Thread(target=send)
    sender.start()
    dup = os.dup
    monkeypatch.setattr(os, "dup", lambda fd: dup(read if fd == 0 else fd))
    try:
        await pull(repo, "tarball:-", tag="piped", platform=PLATFORM)
    finally:
        sender.join()
        os.close(read)
    assert [*open_image(repo, "piped").layers] == [digest(tar("a"))]


@pytest.mark.parametrize("reference", ["tarball:", "tarball:a:", "tarball::a", "tarball:-:-"])
async def test_references_are_checked_before_anything_is_read(reference: str) -> None:
    with pytest.raises(InvalidNameError, match=r"tarball:"):
        check_reference(reference)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("missing", ImageNotFoundError, "there is no file"),
        ("directory", OciError, "is a directory"),
        ("text", TarError, "not a tar archive"),
        ("cut", TarError, "text|cut|end"),
    ],
)
async def test_what_is_no_tar_leaves_nothing(
    repo: Repository, tmp_path: Path, files: list[Path], name: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_text("no tar" * 200)
    (tmp_path / "cut").write_bytes(tar("a")[:1000])
    with pytest.raises(error, match=words):
        await pull(repo, f"tarball:{files[0]}:{tmp_path / name}", tag="made")
    assert list(repo.named_streams("oci")) == []


async def test_it_answers_no_questions(files: list[Path]) -> None:
    async with open_source(f"tarball:{files[0]}") as source:
        with pytest.raises(OciError, match="read but once"):
            await source.resolve()
