"""The command ``du``."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from composefs_async.repository import Repository


def test_the_json_form_has_all_figures(cli: Any, repo: Path) -> None:
    with Repository.open_path(repo) as repository:
        usage = repository.usage()
    found = cli.on(repo)("du", "--json", "--sort", "name").good().json
    assert [(each["name"], each["kind"], each["reference"]) for each in found["names"]] == [
        (name, "tag", f"streams/refs/oci/{name}") for name in ("artifact", "basic", "one")
    ]
    for each, expected in zip(found["names"], usage.names, strict=True):
        assert each["target"] == expected.name
        for key in ("exclusive", "shared", "frees"):
            assert each[key] == asdict(getattr(expected, key))
    assert found["all"] == asdict(usage.objects)
    assert (
        found["garbage"]
        == found["leased"]
        == found["leftovers"]
        == found["quarantine"]
        == {"objects": 0, "size": 0, "disk": 0}
    )


def test_the_table_is_sorted_by_what_would_be_freed(cli: Any, repo: Path) -> None:
    with Repository.open_path(repo) as repository:
        by_name = {each.reference: each for each in repository.usage().names}
    lines = cli.on(repo)("du", "--bytes").good().text.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "EXCLUSIVE", "SHARED", "FREES", "OBJECTS"]
    assert [line.split() for line in lines[1:4]] == [
        [
            name,
            "tag",
            str((each := by_name[f"oci/{name}"]).exclusive.size),
            str(each.shared.size),
            str(each.frees.size),
            str(each.exclusive.objects + each.shared.objects),
        ]
        for name in ("basic", "one", "artifact")
    ]
    assert lines[4] == ""
    assert [line.split()[0] for line in lines[5:]] == ["TOTAL", "all", "garbage", "leased", "leftovers", "quarantine"]


@pytest.mark.parametrize(
    ("options", "size"), [((), "6.84 KiB"), (("--bytes",), "7000"), (("--disk", "--bytes"), "8192")]
)
def test_sizes_come_in_several_forms(cli: Any, empty: Path, options: tuple[str, ...], size: str) -> None:
    with Repository.open_path(empty) as repository:
        stored = repository.ensure_object(b"x" * 7000)
        blocks = os.stat(empty / "objects" / stored.id.path).st_blocks * 512
    if "--disk" in options:
        size = str(blocks)
    lines = cli.on(empty)("du", *options).good().text.splitlines()
    assert lines[0].split() == ["TOTAL", "SIZE", "OBJECTS"]
    assert lines[2] == f"garbage  {size.rjust(len(lines[0]) - len('garbage' + '  ' + '  OBJECTS'))}        1"


def test_names_from_outside_are_printed_safely(cli: Any, empty: Path) -> None:
    with Repository.open_path(empty) as repository:
        stored = repository.ensure_object(b"x")
        (empty / "streams" / "refs").mkdir(parents=True)
        os.symlink(f"../objects/{stored.id.path}", empty / "streams" / "name")
        os.symlink("../name", empty / "streams" / "refs" / "a\x1b[2J")
    assert cli.on(empty)("du").good().text.splitlines()[1].startswith("a\\x1b[2J")


@pytest.mark.parametrize("sort", ["name", "frees", "exclusive", "shared", "objects"])
def test_every_order_has_all_names(cli: Any, repo: Path, sort: str) -> None:
    names = cli.on(repo)("du", "--json", "--sort", sort).good().json["names"]
    assert sorted(each["name"] for each in names) == ["artifact", "basic", "one"]
    if sort in ("frees", "exclusive", "shared"):
        sizes = [each[sort]["size"] for each in names]
        assert sizes == sorted(sizes, reverse=True)


def test_the_chart_is_as_wide_as_the_terminal(cli: Any, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    *bars, key = cli.on(repo)("du", "--chart").good().text.splitlines()
    names = [each["name"] for each in cli.on(repo)("du", "--json").good().json["names"]]
    assert [line.split()[0] for line in bars] == names
    assert 56 <= max(map(len, bars)) <= 60
    assert key.strip() == "█ alone, ░ with others"
