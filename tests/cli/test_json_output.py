"""JSON on a terminal: nothing in it that the terminal would act on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import composefs_async
from composefs_async.cli.context import print_json

from .conftest import VECTORS

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


# -- the page that tells the keys ----------------------------------------------------------------

PAGE = Path(composefs_async.__file__).parent / "docs" / "json.md"
ROWS = {
    command: cell.split(":")[0] if command == "oci images" else cell.split(";")[0]
    for command, cell in re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
}
CALLS = {
    "oci layers": ["basic"],
    "oci pull": [f"oci:{VECTORS}/layouts/basic", "basic", "--progress=none"],
    "fsck --repair": ["--dry-run"],
    "gc": ["--dry-run"],
    "refs prune": ["--dry-run"],
    "diff": ["tag:basic", "tag:basic"],
    "explain": ["tag:basic", "tag:one"],
}


@pytest.mark.parametrize("command", ROWS)
def test_the_page_has_the_keys_of_each_command(command: str, cli: Any, repo: Path) -> None:
    run = cli.on(repo)(*command.split(), *CALLS.get(command, []), "--json")
    assert run.code in (0, 1)
    told = re.findall(r"`(\w+)`", ROWS[command])
    found = [*run.json, *run.json["layers"][0]] if command == "oci layers" else [*run.json]
    assert sorted(found) == sorted(told)
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in keys_of(run.json))


def keys_of(value: Any) -> list[str]:
    """Of all objects in it, but of those whose keys are names of other things."""
    if isinstance(value, list):
        return [key for each in value for key in keys_of(each)]
    if not isinstance(value, dict):
        return []
    below = [each for key, each in value.items() if key not in ("seconds",)]
    return [*value, *keys_of(below)]
