"""JSON: nothing in it that a terminal would act on, and the schemas of what each command prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator, ValidationError

import composefs_async
from composefs_async.cli.app import app
from composefs_async.cli.context import print_json
from composefs_async.cli.json_schemas import SHAPES, Shape, keys, schema

from .conftest import VECTORS
from .test_registries import Served, served

__all__ = ["served"]

ODD = [
    "\x1b[2J",
    "\x7f",
    "\x9b31m",
    "\u200e",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ufeff",
    "\udcff",
    "\U000e0001",
    "\r\n\t",
    "\0",
    "\xa0",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_what_a_terminal_might_act_on_is_escaped(text: str, capfdbinary: Any) -> None:
    value = {f"key{text}": [text, {"deep": f"x{text}y"}]}
    print_json(value)
    printed = capfdbinary.readouterr().out.decode()
    assert json.loads(printed) == value
    assert all(char.isprintable() or char == "\n" for char in printed)


def test_other_text_is_left_as_it_is(capfdbinary: Any) -> None:
    print_json({"ö": "日本 “x”"})
    assert capfdbinary.readouterr().out.decode() == '{\n  "ö": "日本 “x”"\n}\n'


def test_what_is_no_number_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"x": float("nan")})


# -- schemas -----------------------------------------------------------------------------------

PAGE = Path(composefs_async.__file__).parent / "docs" / "json.md"
CALLS: dict[str, list[str]] = {
    "init": ["--reset-metadata", "--yes", "--insecure"],
    "init --dry-run": ["--reset-metadata", "--insecure"],
    "doctor": ["."],
    "upgrade": ["--dry-run"],
    "oci layers": ["basic"],
    "oci inspect": ["basic"],
    "oci pull": [f"oci:{VECTORS}/layouts/basic", "basic", "--progress=none"],
    "oci build": ["made", "--directory", "tree", "--progress=none"],
    "oci config": ["basic", "made", "--workdir=/", "--progress=none"],
    "oci copy": ["basic", "oci:copy", "--progress=none"],
    "fsck --repair": ["--dry-run"],
    "gc": ["--dry-run"],
    "refs prune": ["--dry-run"],
    "diff": ["tag:basic", "tag:one"],
    "explain": ["tag:basic", "tag:one"],
    "store init": ["store"],
}
"""Those that need nothing but a repository and this directory."""
ALONE = ["oci images", "oci fsck", "oci upgrade", "fsck", "du", "images", "leases", "refs list"]


@pytest.mark.parametrize("command", [*CALLS, *ALONE])
def test_each_command_prints_what_its_schema_tells(
    command: str, cli: Any, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    run = cli.on(repo)(*command.split(), *CALLS.get(command, []), "--json")
    assert run.code in (0, 1), run
    Draft202012Validator(schema(command, closed=True)).validate(run.json)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("oci tags", ["docker://{}/a/b"]),
        ("oci catalog", ["{}"]),
        ("oci manifest head", ["docker://{}/a/b:1"]),
        ("oci referrers", ["docker://{}/a/b:1"]),
        ("oci ratelimit", ["docker://{}/a/b:1"]),
        ("oci ping", ["{}"]),
    ],
)
def test_commands_of_registries_print_what_their_schemas_tell(
    command: str, arguments: list[str], cli: Any, served: Served
) -> None:
    words = [word.format(served.host) for word in arguments]
    run = cli(*command.split(), "--tls-verify=false", *words, "--json").good()
    Draft202012Validator(schema(command, closed=True)).validate(run.json)


def test_the_state_of_a_fleet_is_what_its_schema_tells(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("docker://host/image\n")
    cli("store", "init", tmp_path / "store").good()
    found = cli("fleet", "status", tmp_path / "list", "--store", tmp_path / "store", "--json").good().json
    assert found == [{"reference": "docker://host/image", "name": "host/image", "manifest": None}]


def with_json(group: click.Group, above: click.Context, path: str = "") -> Iterator[str]:
    for name in group.list_commands(above):
        command = group.get_command(above, name)
        assert command is not None
        if any("--json" in option.opts for option in command.params):
            yield f"{path}{name}"
        if isinstance(command, click.Group):
            yield from with_json(command, click.Context(command, above, name), f"{path}{name} ")


def test_every_command_that_prints_json_has_a_schema() -> None:
    assert set(with_json(app, click.Context(app))) == {name.partition(" --")[0] for name in SHAPES}


@pytest.mark.parametrize("command", SHAPES)
def test_a_schema_is_one_and_refuses_what_is_not_told(command: str) -> None:
    Draft202012Validator.check_schema(schema(command))
    for wrong in ({}, [{}], "x", 1):
        with pytest.raises(ValidationError):
            Draft202012Validator(schema(command)).validate(wrong)


def test_keys_may_be_added_where_a_schema_is_open() -> None:
    found = {"host": "a", "version": "b", "new": 1}
    Draft202012Validator(schema("oci ping")).validate(found)
    with pytest.raises(ValidationError, match="'new' was unexpected"):
        Draft202012Validator(schema("oci ping", closed=True)).validate(found)


def row(command: str, shape: Shape) -> str:
    always = " ".join(f"`{key}`" for key in keys(shape) if not key.endswith("?"))
    maybe = " ".join(f"`{key[:-1]}`" for key in keys(shape) if key.endswith("?"))
    return f"| `{command}` | {'list of ' * isinstance(shape, list)}{always}{f'; or {maybe}' if maybe else ''} |"


def test_the_page_has_the_keys_of_all_schemas() -> None:
    rows = re.findall(r"^\| `.*", PAGE.read_text(), re.MULTILINE)
    assert rows == [row(command, shape) for command, shape in SHAPES.items()]


def test_keys_are_in_snake_case_but_for_those_that_others_made() -> None:
    theirs = {"Repository", "Tags", "mediaType", "artifactType", "diffId", "entryCount", "splitstream"}
    found = {key for shape in SHAPES.values() for key in keys(shape)}
    assert {key for key in found if not re.fullmatch(r"[a-z0-9_]+\??", key)} == {
        key + mark for key in theirs for mark in ("", "?") if key + mark in found and key != "splitstream"
    }


def test_help_prints_schemas(cli: Any) -> None:
    assert cli("help", "--schema", "oci", "images").good().json == schema("oci images")
    assert cli("help", "--schema").good().json == {name: schema(name) for name in SHAPES}
    cli("help", "--schema", "oci", "image").failed(3, "schema not found: oci image", "'oci images'")
    cli("help", "oci", "images").failed(2, "one topic")
