"""``mount --rootless`` and ``mount --fuse``, of images and of OCI images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from composefs_async import Repository
from composefs_async._sys.rootless_probe import probe_rootless
from composefs_async.oci.catalogue import open_image

if TYPE_CHECKING:
    from .conftest import Cli

rootless = pytest.mark.skipif(
    not probe_rootless().rootless, reason="no rootless mounts here: see 'composefs-async doctor'"
)


def image_of(repo: Path, tag: str = "one") -> str:
    with Repository.open_path(repo) as opened:
        found = open_image(opened, tag).image(1)
    assert found is not None
    return found.hex()


@rootless
@pytest.mark.parametrize("command", [("mount",), ("oci", "mount")])
def test_a_command_runs_in_the_mount(repo: Path, program: Callable[..., Any], command: tuple[str, ...]) -> None:
    name = "one" if "oci" in command else image_of(repo)
    script = 'test "$(pwd -P)" = "$COMPOSEFS_MOUNT" && ls -A && exit 7'
    run = program("--repo", repo, *command, "--rootless", name, "--", "sh", "-c", script)
    assert (run.code, run.err) == (7, "")
    assert run.out
    # Nobody else sees it.
    assert "composefs-async" not in Path("/proc/self/mounts").read_text()


@rootless
def test_a_command_that_cannot_be_run(repo: Path, program: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = program("--repo", repo, "mount", "--rootless", image_of(repo), "--", tmp_path / "nothing")
    run.failed(127, "nothing")
    run = program("--repo", repo, "mount", "--rootless", image_of(repo), "--", tmp_path / "file")
    run.failed(126, "file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mount", "--rootless", "x"), "--rootless needs a command"),
        (("mount", "--rootless", "--fuse", "yes", "x", "--", "y"), "--rootless excludes"),
        (("mount", "--rootless", "--idmap", "/", "x", "--", "y"), "--rootless excludes"),
        (("mount", "x"), "MOUNTPOINT"),
        (("mount", "x", "/", "/"), "more than one"),
        (("mount", "x", "/nowhere"), "does not exist"),
        (("mount", "x", "/etc/passwd"), "is a file"),
        (("mount", "--foreground", "x", "/"), "--foreground needs --fuse"),
        (("mount", "--upperdir", "/", "x", "/"), "given both"),
    ],
)
def test_wrong_arguments(cli: Cli, repo: Path, arguments: tuple[str, ...], words: str) -> None:
    cli.on(repo)(*arguments).failed(2, words)
    cli.on(repo)("oci", *arguments).failed(2, words)


def test_images_that_are_not_there(cli: Cli, repo: Path) -> None:
    cli.on(repo)("mount", "--rootless", "nothing", "--", "true").failed(3, "nothing")
    cli.on(repo)("mount", "--fuse", "nothing", "/").failed(3, "nothing")


@pytest.mark.parametrize("spelling", [("--fuse",), ("--fuse", "yes"), ("--fuse=yes",)])
def test_fuse_is_left_to_cfsctl(
    repo: Path,
    program: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spelling: tuple[str, ...],
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cfsctl").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/cfsctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    image = image_of(repo)
    options = ("--read-write", "--upperdir", tmp_path, "--workdir", tmp_path, "--foreground")
    run = program("--repo", repo, "mount", *options, *spelling, image, tmp_path).good()
    assert run.text == (
        f"--repo {repo} mount --fuse yes --upperdir {tmp_path} --workdir {tmp_path} --read-write --foreground "
        f"{image} {tmp_path}\n"
    )


def test_fuse_without_cfsctl(repo: Path, program: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    run = program("--repo", repo, "mount", "--fuse", image_of(repo), tmp_path)
    run.failed(1, "neither is there")
    (tmp_path / "bin/mount.composefs").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/mount.composefs").chmod(0o755)
    run = program("--repo", repo, "mount", "--fuse", image_of(repo), tmp_path).good()
    assert run.text == f"-o basedir={repo}/objects {repo}/images/{image_of(repo)} {tmp_path}\n"


def test_doctor_tells_what_rootless_mounts_need(cli: Cli, tmp_path: Path) -> None:
    found = cli("doctor", tmp_path, "--json").good().json["rootless"]
    assert sorted(found) == ["fuse", "ids", "tmpfs_xattrs", "user_namespaces", "userxattr_data"]
    assert found["fuse"] == os.access("/dev/fuse", os.R_OK | os.W_OK)
    lines = cli("doctor", tmp_path).good().text.splitlines()
    at = lines.index("mounts without root:")
    assert [line.split()[0] for line in lines[at + 1 : at + 6]] == [
        "yes" if found[name] else "no" for name in ("user_namespaces", "ids", "tmpfs_xattrs", "userxattr_data", "fuse")
    ]
