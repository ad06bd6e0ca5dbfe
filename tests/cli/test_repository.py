"""Which repository a command works on, and ``init``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from composefs_async.cli import app as app_module
from composefs_async.cli.app import app

# -- the choice of repository ------------------------------------------------------------------


def test_repository_of_the_user_is_below_home(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cli("--user", "oci", "images").failed(6, f"{tmp_path}/.var/lib/composefs")
    cli("--user", "init", "--insecure").good()
    assert cli("--user", "oci", "images").good().text == "No images found\n"
    assert (tmp_path / ".var/lib/composefs/meta.json").is_file()


@pytest.mark.parametrize("value", [None, ""])
def test_user_needs_home(value: str | None, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    if value is not None:
        monkeypatch.setenv("HOME", value)
    assert "HOME is not set" in cli("--user", "oci", "images").failed(6).err


@pytest.mark.parametrize(("uid", "place"), [(0, "/sysroot/composefs"), (1000, "/home/me/.var/lib/composefs")])
def test_default_is_the_system_for_root_and_the_user_for_others(
    uid: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("HOME", "/home/me")
    seen = []

    @click.command
    @click.pass_obj
    def look(settings: Any) -> None:
        seen.append((settings.chosen, settings.path()))

    monkeypatch.setattr(app, "get_command", lambda ctx, name: look)
    assert app_module.run(["look"]) == 0
    assert app_module.run(["--system", "look"]) == 0
    assert app_module.run(["--repo", "here", "look"]) == 0
    assert seen == [(False, place), (True, "/sysroot/composefs"), (True, "here")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["no such file"]),
        (Path.touch, ["not a directory"]),
        (Path.mkdir, ["there is no meta.json"]),
    ],
    ids=["missing", "file", "empty directory"],
)
def test_no_repository_is_named(make: Callable[[Path], None], words: list[str], cli: Any, tmp_path: Path) -> None:
    make(tmp_path / "place")
    told = cli.on(tmp_path / "place")("oci", "images").failed(6, *words).err
    assert f"{tmp_path}/place" in told


def test_broken_metadata_is_named(cli: Any, empty: Path) -> None:
    (empty / "meta.json").unlink()
    (empty / "meta.json").write_text("{")
    assert f"{empty}/meta.json" in cli.on(empty)("oci", "images").failed(6).err


def test_require_verity_refuses_an_insecure_repository(cli: Any, empty: Path) -> None:
    assert str(empty) in cli("--repo", empty, "--require-verity", "oci", "images").failed(4).err
    cli("--repo", empty, "--insecure", "oci", "images").good()


def test_other_algorithm_is_refused(cli: Any, empty: Path) -> None:
    cli("--repo", empty, "--hash", "sha512", "oci", "images").good()
    told = cli("--repo", empty, "--hash", "sha256", "oci", "images").failed(6, "sha256", "sha512").err
    assert str(empty) in told


# -- init --------------------------------------------------------------------------------------


def test_init_is_repeated_only_if_it_is_the_same(tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "new" / "repo"
    first = cli("init", "--insecure", path).good()
    assert first.text.splitlines()[0] == f"Initialized composefs repository at {path}"
    assert cli("init", "--insecure", path).good().text == f"Repository already initialized at {path}\n"
    cli("init", path).failed(6, str(path), "insecure")
    cli("init", "--insecure", "--algorithm", "fsverity-sha256-12", path).failed(6, str(path), "different configuration")
    cli("init", "--insecure", "--erofs-version", "2", path).failed(6, str(path), "different configuration")
    cli("init", "--ensure", "--algorithm", "fsverity-sha256-12", path).failed(6, str(path), "sha512", "sha256")
    kept = cli("--repo", path, "--hash", "sha512", "init", "--ensure", "--erofs-version", "2").good()
    assert kept.text == f"Repository already initialized at {path} (existing configuration preserved)\n"


def test_init_tells_the_same_as_json(tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "repo"
    facts = {"path": str(path), "created": True, "algorithm": "fsverity-sha256-12", "verity": False}
    arguments = ["--repo", path, "init", "--insecure", "--algorithm", "fsverity-sha256-12", "--json"]
    assert cli(*arguments).good().json == facts
    assert cli(*arguments).good().json == {**facts, "created": False}


@pytest.mark.parametrize(("place", "code"), [("file", 6), ("file/below", 1)])
def test_init_where_a_file_is_fails(place: str, code: int, tmp_path: Path, cli: Any) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    cli("init", "--insecure", tmp_path / place).failed(code, f"{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_reset_tells_what_it_forgets_and_wants_yes_where_something_has_a_name(cli: Any, pulled: Path) -> None:
    cli.on(pulled)("refs", "add", "images/mine", _image_of(cli, pulled)).good()
    counts = "1 tag, 1 reference, 4 streams, 1 image"
    before = sorted(str(path) for path in pulled.rglob("*"))
    cli("init", pulled, "--reset-metadata", "--insecure").failed(2, f"forget {counts}", "--yes", "--dry-run")
    plan = cli("init", pulled, "--reset-metadata", "--insecure", "-n").good().text
    assert plan == f"Would reset {pulled} and forget {counts}\n  tag basic\n  reference images/mine\n"
    told = cli("init", pulled, "--reset-metadata", "--insecure", "-n", "--json").good().json
    names = {"tags": ["basic"], "references": ["images/mine"], "streams": 4, "images": 1}
    assert told == {"path": str(pulled), "dry_run": True, "forgotten": names}
    assert sorted(str(path) for path in pulled.rglob("*")) == before
    done = cli("init", pulled, "--reset-metadata", "--insecure", "--yes").good().text
    assert done.endswith(f"  forgotten: {counts}; their objects stay until gc\n")
    # Nothing has a name any more, so nothing needs to be confirmed.
    assert "forgotten: nothing;" in cli("init", pulled, "--reset-metadata", "--insecure").good().text


def _image_of(cli: Any, path: Path) -> str:
    return str(cli.on(path)("oci", "inspect", "basic").json["composefs_erofs"])


def test_init_without_verity_says_the_command_that_does_without(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composefs_async._repo import opening
    from composefs_async.errors import VerityNotSupportedError

    def refuse(*arguments: object, **options: object) -> None:
        raise VerityNotSupportedError("meta.json")

    monkeypatch.setattr(opening, "init", refuse)
    told = cli("init", tmp_path / "repo").failed(4, "does not support fs-verity").err
    assert told.endswith(f"; to make one: composefs-async init --insecure {tmp_path / 'repo'}\n")
