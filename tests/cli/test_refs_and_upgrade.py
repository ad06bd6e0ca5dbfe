"""``refs``, ``upgrade``, ``oci upgrade`` and what ``init`` does to old repositories."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from composefs_async.digest import Algorithm
from composefs_async.repository import Repository

from ..maintenance.generations import Builder, Image, entries, february, january

if TYPE_CHECKING:
    from .conftest import Cli

SHA256 = ("--algorithm", "fsverity-sha256-12")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.make(tmp_path / "layout")


# -- refs --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A repository with the image ``aaaa…``, a stream, and references to them, one of which dangles."""
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        repo.ensure_stream("stream", 0, lambda writer: writer.write_inline(b"x"), "oci/docker:%2F%2Fa%25")
        repo.write_image(b"an image", "boot/a")
    os.symlink("../gone\x1b", tmp_path / "repo/streams/refs/lost\n")
    return tmp_path / "repo"


def listed(cli: Cli, path: Path, *options: str) -> Any:
    return cli.on(path)("refs", "list", "--json", *options).good().json["references"]


def test_list_shows_tags_as_people_write_them(cli: Cli, path: Path) -> None:
    (image_id,) = [each.name for each in (path / "images").iterdir() if each.name != "refs"]
    common = {"dangling": False, "tag": None}
    assert listed(cli, path) == [
        {"category": "images", "name": "boot/a", "target": image_id, **common},
        {"category": "streams", "name": "lost\n", "target": "gone\x1b", "dangling": True, "tag": None},
        {
            "category": "streams",
            "name": "oci/docker:%2F%2Fa%25",
            "target": "stream",
            "dangling": False,
            "tag": "docker://a%",
        },
    ]
    assert [each["name"] for each in listed(cli, path, "--category=images")] == ["boot/a"]
    assert cli.on(path)("refs", "list").good().text.splitlines() == [
        f"images/boot/a                  {image_id}",
        r"streams/lost\n                 gone\x1b  dangling",
        "streams/oci/docker:%2F%2Fa%25  stream  tag docker://a%",
    ]


@pytest.mark.parametrize(
    ("arguments", "output", "names"),
    [
        (["rename", "images/boot/a", "b"], "Renamed images/boot/a to images/b", ["b"]),
        (["rename", "images/refs/boot/a", "images/refs/b/c"], "Renamed images/boot/a to images/b/c", ["b/c"]),
        (
            ["rename", "--category=images", "boot/a", "streams/x"],
            "Renamed images/boot/a to images/streams/x",
            ["streams/x"],
        ),
        (["add", "images/c", "boot/a"], "Added images/c", ["boot/a", "c"]),
        (["remove", "images/boot/a"], "Removed images/boot/a", []),
    ],
)
def test_references_are_changed(arguments: list[str], output: str, names: list[str], cli: Cli, path: Path) -> None:
    assert cli.on(path)("refs", *arguments).good().text == output + "\n"
    assert [each["name"] for each in listed(cli, path, "--category=images")] == names


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rename", "boot/a", "b"], 2, ["begin with streams/ or images/"]),
        (["rename", "images/boot/a", "streams/b"], 2, ["between streams and images"]),
        (["rename", "images/gone", "b"], 3, ["image not found: refs/gone"]),
        (["rename", "images/boot/a", "../b"], 2, ["invalid name"]),
        (["remove", "streams/gone"], 3, ["stream not found: refs/gone"]),
        (["remove", "streams/../../meta.json"], 2, ["invalid name"]),
        (["add", "images/boot/a", "boot/a"], 1, ["images/refs/boot/a: File exists; --replace"]),
        (["add", "streams/x", "gone"], 3, ["stream not found: gone"]),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], code: int, words: list[str], cli: Cli, path: Path
) -> None:
    before = entries(path)
    cli.on(path)("refs", *arguments).failed(code, *words)
    assert entries(path) == before


def test_prune_tells_and_removes(cli: Cli, path: Path) -> None:
    assert cli.on(path)("refs", "prune").good().text == ""
    dry = cli.on(path)("refs", "prune", "--dangling", "-n").good()
    assert dry.text == "Would remove streams/lost\\n\n"
    pruned = cli.on(path)("refs", "prune", "--dangling", "--json").good().json
    assert [each["name"] for each in pruned["pruned"]] == ["lost\n"]
    assert [each["name"] for each in listed(cli, path)] == ["boot/a", "oci/docker:%2F%2Fa%25"]


# -- upgrade -----------------------------------------------------------------------------------


def test_upgrade_tells_what_it_would_write_writes_it_and_is_done(cli: Cli, tmp_path: Path, image: Image) -> None:
    old = tmp_path / "old"
    january(old, Algorithm.SHA256, image)
    cli.on(old)("oci", "images").failed(6, "composefs-async upgrade")
    facts = "  algorithm: fsverity-sha256-12\n  verity:    not required (insecure)\n  images:    layout 2\n"
    facts += "  streams:   3 in the form of 2026-01\n"
    plan = cli.on(old)("upgrade", "--dry-run").good().text
    assert plan.startswith(f"Would upgrade legacy repository at {old}\n{facts}meta.json:\n{{\n")
    planned = cli.on(old)("upgrade", "-n", "--json").good().json
    assert not (old / "meta.json").exists()
    assert cli.on(old)("upgrade").good().text == f"Upgraded legacy repository at {old}\n{facts}"
    content = (old / "meta.json").read_text()
    assert plan.endswith(content)
    assert planned == {
        "path": str(old),
        "upgraded": True,
        "dry_run": True,
        "algorithm": "fsverity-sha256-12",
        "verity": False,
        "erofs_versions": [2],
        "streams": {"2026-01": 3},
        "hidden_images": 0,
        "meta_json": content,
    }
    assert cli.on(old)("upgrade").good().text == f"Repository is up to date at {old}\n{facts}"


def test_upgrade_refuses_what_the_global_options_do_not_want(cli: Cli, tmp_path: Path, image: Image) -> None:
    old = tmp_path / "old"
    january(old, Algorithm.SHA256, image)
    cli("--repo", old, "--require-verity", "upgrade").failed(4, "not protected")
    cli("--repo", old, "--hash", "sha512", "upgrade").failed(6, "sha256")
    assert not (old / "meta.json").exists()


def test_init_ensures_by_an_upgrade_and_resets(cli: Cli, tmp_path: Path, image: Image) -> None:
    old = tmp_path / "old"
    february(old, Algorithm.SHA256, image)
    cli("init", old, *SHA256, "--insecure").failed(6, "composefs-async upgrade", "--reset-metadata")
    cli("init", old, "--ensure").failed(6, "sha256")
    assert cli("init", old, "--ensure", *SHA256).good().text == f"Upgraded legacy repository at {old}\n"
    again = cli("init", old, "--ensure", *SHA256).good().text
    assert again == f"Repository already initialized at {old} (existing configuration preserved)\n"
    assert cli.on(old)("oci", "images", "--json").good().json["images"][0]["name"] == "app"
    cli("init", old, "--reset-metadata", "--ensure").failed(2, "exclude")
    cli("init", old, "--reset-metadata", "--yes", "--insecure").failed(6, "sha256")
    with Repository.open_path(old):
        cli("init", old, "--reset-metadata", "--yes", "--insecure", "--timeout=0", *SHA256).failed(8, "in use")
    reset = cli("init", old, "--reset-metadata", "--yes", "--insecure", *SHA256).good().text
    assert reset.startswith(f"Initialized composefs repository at {old}\n")
    assert sorted(os.listdir(old)) == ["meta.json", "objects"]
    assert cli("init", tmp_path / "new", "--reset-metadata", "--insecure").good().text.startswith("Initialized")


def test_init_ensure_as_json_says_what_happened(cli: Cli, tmp_path: Path, image: Image) -> None:
    old = tmp_path / "old"
    february(old, Algorithm.SHA256, image)
    expected = {"path": str(old), "created": False, "algorithm": "fsverity-sha256-12", "verity": False}
    assert cli("init", old, "--ensure", "--json", *SHA256).good().json == {**expected, "upgraded": True}
    assert cli("init", old, "--ensure", "--json", *SHA256).good().json == expected


def test_oci_upgrade_gives_images_what_they_lack_and_tells_of_those_it_cannot(
    cli: Cli, tmp_path: Path, image: Image
) -> None:
    old = tmp_path / "old"
    january(old, Algorithm.SHA256, image)
    broken = Image.make(tmp_path / "broken", b"two")
    builder = Builder(old, Algorithm.SHA256, january=True)
    builder.manifest(broken, "broken")
    os.unlink(old / "objects" / builder.layer_id(next(iter(broken.tars))).path)
    cli.on(old)("upgrade").good()
    seen = cli.on(old)("oci", "images").good()
    assert "app: it has no manifest; 'oci upgrade' makes one" in seen.err
    inspected = cli.on(old)("oci", "inspect", "app").good().json
    assert json.loads(inspected["config"]) == json.loads(image.config)
    result = cli.on(old)("oci", "upgrade")
    assert (result.code, result.text) == (1, "upgraded  app\nfailed    broken\n")
    assert "broken: object not found" in result.err
    again = cli.on(old)("oci", "upgrade", "--json").json
    assert [each["outcome"] for each in again["images"]] == ["current", "failed"]
    assert (again["current"], again["upgraded"], again["skipped"], again["failed"]) == (1, 0, 0, 1)
    images = cli.on(old)("oci", "images", "--json").good().json["images"]
    assert [(each["name"], "without_manifest" in each) for each in images] == [("app", False), ("broken", False)]


def test_an_artifact_is_skipped(cli: Cli, repo: Path) -> None:
    outcomes = {
        each["name"]: each["outcome"] for each in cli.on(repo)("oci", "upgrade", "--json").good().json["images"]
    }
    assert outcomes == {"artifact": "skipped", "basic": "current", "one": "current"}
