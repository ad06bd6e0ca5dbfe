"""``oci images``, ``inspect``, ``tag``, ``untag``: what cfsctl prints of the same repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Golden = Callable[[str], tuple[Path, Any]]

FLAVOURS = ["g4-sha512-v1", "g4-sha256-v2", "g3-sha512"]
BASIC = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"

TABLE = """\
┌───────┬──────────────┬───────┬────────┬──────┐
│ NAME  ┆ DIGEST       ┆ ARCH  ┆ LAYERS ┆ REFS │
╞═══════╪══════════════╪═══════╪════════╪══════╡
│ basic ┆ 8e66440a93d6 ┆ amd64 ┆ 2      ┆ 0    │
├╌╌╌╌╌╌╌┼╌╌╌╌╌╌╌╌╌╌╌╌╌╌┼╌╌╌╌╌╌╌┼╌╌╌╌╌╌╌╌┼╌╌╌╌╌╌┤
│ other ┆ 8e66440a93d6 ┆ amd64 ┆ 2      ┆ 0    │
└───────┴──────────────┴───────┴────────┴──────┘
"""


def by_name(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(images, key=lambda image: str(image["name"]))


@pytest.mark.parametrize("flavour", ["g4-sha512-v1", "g4-sha256-v2"])
def test_images_prints_the_json_of_cfsctl_sorted_by_name(cli: Any, golden: Golden, flavour: str) -> None:
    path, facts = golden(flavour)
    result = cli("--repo", path, "oci", "images", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json == {"images": by_name(facts["oci images --json"]["images"])}
    assert [*result.json["images"][0]] == [*facts["oci images --json"]["images"][0]]


@pytest.mark.parametrize("flavour", ["g4-sha512-v1", "g4-sha256-v2"])
def test_inspect_prints_the_json_of_cfsctl(cli: Any, golden: Golden, flavour: str) -> None:
    path, facts = golden(flavour)
    for name, known in facts["images"].items():
        result = cli("--repo", path, "oci", "inspect", name)
        assert (result.code, result.json) == (0, known["inspect"])
        assert [*result.json] == [*known["inspect"]]


def test_inspect_prints_manifest_and_config_byte_for_byte(cli: Any, golden: Golden) -> None:
    path, facts = golden("g4-sha512-v1")
    known = facts["images"]["basic:latest"]["inspect"]
    for name in ("basic:latest", f"@{BASIC}", BASIC):
        assert cli("--repo", path, "oci", "inspect", name, "--manifest").text == known["manifest"] + "\n"
        assert cli("--repo", path, "oci", "inspect", name, "--config").text == known["config"] + "\n"


def test_images_are_listed_in_a_table_like_that_of_cfsctl(cli: Any, pulled: Path) -> None:
    assert cli("--repo", pulled, "oci", "tag", BASIC, "other").text == f"Tagged {BASIC} as other\n"
    result = cli("--repo", pulled, "oci", "images")
    assert (result.code, result.text, result.err) == (0, TABLE, "")


def test_a_repository_without_images_says_so(cli: Any, empty: Path) -> None:
    assert cli("--repo", empty, "oci", "images").text == "No images found\n"
    assert cli("--repo", empty, "oci", "images", "--json").json == {"images": []}


def test_a_tag_is_removed_once(cli: Any, pulled: Path) -> None:
    assert cli("--repo", pulled, "oci", "untag", "basic").text == "Removed tag basic\n"
    again = cli("--repo", pulled, "oci", "untag", "basic")
    assert (again.code, again.text, again.err) == (3, "", "composefs-async: tag not found: basic\n")
    assert cli("--repo", pulled, "oci", "images").text == "No images found\n"


def test_an_image_that_is_not_there_gets_no_tag(cli: Any, pulled: Path) -> None:
    unknown = f"sha256:{'0' * 64}"
    result = cli("--repo", pulled, "oci", "tag", unknown, "x")
    assert (result.code, result.err) == (3, f"composefs-async: manifest not found: {unknown}\n")
    assert [image["name"] for image in cli("--repo", pulled, "oci", "images", "--json").json["images"]] == ["basic"]


def test_a_broken_image_is_listed_with_what_is_wrong(cli: Any, pulled: Path) -> None:
    os.unlink(pulled / "streams" / f"oci-manifest-{BASIC}")
    result = cli("--repo", pulled, "oci", "images")
    assert "│ basic ┆ 8e66440a93d6 ┆ broken ┆        ┆ 0    │" in result.text
    assert (result.code, result.err) == (0, f"composefs-async: basic: manifest not found: {BASIC}\n")
    (listed,) = cli("--repo", pulled, "oci", "images", "--json").json["images"]
    assert listed["error"] == f"manifest not found: {BASIC}"


def test_names_cannot_send_escape_sequences_to_a_terminal(cli: Any, pulled: Path) -> None:
    name = "a\x1b[31m\n日本"
    assert cli("--repo", pulled, "oci", "tag", BASIC, name).text == f"Tagged {BASIC} as a\\x1b[31m\\n日本\n"
    table = cli("--repo", pulled, "oci", "images").text.splitlines()
    assert table[3].startswith("│ a\\x1b[31m\\n日本 ┆ 8e66440a93d6 ┆")
    names = [image["name"] for image in cli("--repo", pulled, "oci", "images", "--json").json["images"]]
    assert names == [name, "basic"]


def test_a_name_that_is_not_utf8_is_valid_json(cli: Any, pulled: Path) -> None:
    tags = pulled / "streams/refs/oci"
    os.symlink(os.readlink(tags / "basic"), os.fsencode(tags) + b"/\xff")
    result = cli("--repo", pulled, "oci", "images", "--json")
    assert [image["name"] for image in result.json["images"]] == ["basic", "\udcff"]
    assert "│ \\udcff ┆" in cli("--repo", pulled, "oci", "images").text


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha256:12", "@sha256:12", "@nope", "@", "sha512:" + "0" * 64])
def test_what_looks_like_a_digest_but_is_none_is_a_wrong_argument(name: str, repo: Path, cli: Any) -> None:
    told = cli.on(repo)("oci", "inspect", name).failed(2, name).err
    assert "it is no content digest" in told


@pytest.mark.parametrize("command", [["oci", "inspect"], ["oci", "untag"], ["cat"]], ids=" ".join)
@pytest.mark.parametrize(("name", "code"), [("nope", 3), ("", 2), ("..", 2), ("x" * 300, 2)])
def test_missing_and_impossible_names_differ(command: list[str], name: str, code: int, repo: Path, cli: Any) -> None:
    found = cli.on(repo)(*command, name).failed(code, name)
    if name == "nope":
        kind = {"inspect": "image", "untag": "tag", "cat": "stream"}[command[-1]]
        assert found.err == f"composefs-async: {kind} not found: nope\n"


def test_tag_that_looks_like_a_digest_is_found_first(repo: Path, cli: Any) -> None:
    cli.on(repo)("oci", "tag", BASIC, "sha256:12").good()
    assert cli.on(repo)("oci", "inspect", "sha256:12").good().json == cli.on(repo)("oci", "inspect", "basic").json
