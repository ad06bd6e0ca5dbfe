"""The checks of cfsctl and ours side by side: the same verdict, counters and texts for all that both know."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..maintenance.corruptions import CASES, OCI_CASES, Case, OciCase, Victim

KNOWN = [case for case in CASES if case.known]
cases = pytest.mark.parametrize("case", KNOWN, ids=[case.name for case in KNOWN])
metadata_only = pytest.mark.parametrize("options", [[], ["--metadata-only"]], ids=["all", "metadata"])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim.make(tmp_path_factory.mktemp("sound"))


def ours(victim: Victim, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "composefs_async", "--repo", str(victim.path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def theirs(program: Path, victim: Victim, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), "--repo", str(victim.path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Without what is ours alone, and in an order that does not depend on directories."""
    if "repo" in document:
        document["repo"] = comparable(document["repo"])
    document.pop("findings", None)
    document["errors"] = sorted(document["errors"])
    return document


@cases
@metadata_only
def test_json_is_the_same(
    case: Case, options: list[str], sound: Victim, tmp_path: Path, tool: Callable[[str], Path]
) -> None:
    victim = sound.copy(tmp_path)
    case.damage(victim)
    expected = json.loads(theirs(tool("cfsctl"), victim, "fsck", "--json", *options).stdout)
    found = ours(victim, "fsck", "--json", *options)
    assert list(json.loads(found.stdout)) == [*expected, "findings"]
    assert comparable(json.loads(found.stdout)) == comparable(expected)
    assert found.returncode == (0 if expected["ok"] else 1)


def lines(text: str) -> list[str]:
    """Sorted from the first finding on, and without what is ours alone: causes stand below what they explain."""
    rows = [line for line in text.splitlines() if not line.startswith("      ")]
    return [line for line in rows if not line.startswith("  - ")] + sorted(x for x in rows if x.startswith("  - "))


@cases
def test_the_report_is_the_same(case: Case, sound: Victim, tmp_path: Path, tool: Callable[[str], Path]) -> None:
    victim = sound.copy(tmp_path)
    case.damage(victim)
    assert lines(ours(victim, "fsck").stdout) == lines(theirs(tool("cfsctl"), victim, "fsck").stdout)


def test_the_report_on_a_sound_repository_is_the_same(sound: Victim, tool: Callable[[str], Path]) -> None:
    for command in (["fsck"], ["fsck", "--metadata-only"], ["oci", "fsck"], ["oci", "fsck", "one"]):
        expected = theirs(tool("cfsctl"), sound, *command).stdout
        # Ours says that it has not looked, in place of counting nothing as sound.
        assert ours(sound, *command).stdout == expected.replace("objects: 0/0 ok", "objects: not read")


def test_a_tag_that_is_not_there_is_no_damage_of_ours(sound: Victim, tool: Callable[[str], Path]) -> None:
    assert ours(sound, "oci", "fsck", "two").returncode == 3
    assert theirs(tool("cfsctl"), sound, "oci", "fsck", "two").returncode == 1


def test_damage_to_an_image_has_the_same_kinds(sound: Victim, tmp_path: Path, tool: Callable[[str], Path]) -> None:
    """What follows is in the words of either reader of EROFS."""
    victim = sound.copy(tmp_path)
    next(case for case in CASES if case.name == "image_is_damaged").damage(victim)

    def kinds(done: subprocess.CompletedProcess[str]) -> list[str]:
        return sorted(re.sub("(Invalid image: ).*", r"\1", text) for text in json.loads(done.stdout)["errors"])

    assert kinds(ours(victim, "fsck", "--json")) == kinds(theirs(tool("cfsctl"), victim, "fsck", "--json"))


UNKNOWN_TAG = "tag_that_is_asked_for_is_not_there"
"""Damage for cfsctl; for us a wrong argument, with an exit code of its own."""

oci_cases = pytest.mark.parametrize(
    "case",
    [case for case in OCI_CASES if case.known and case.name != UNKNOWN_TAG],
    ids=[case.name for case in OCI_CASES if case.known and case.name != UNKNOWN_TAG],
)


@oci_cases
def test_images_have_the_same_findings(
    case: OciCase, sound: Victim, tmp_path: Path, tool: Callable[[str], Path]
) -> None:
    victim = sound.copy(tmp_path)
    case.damage(victim)
    expected = json.loads(theirs(tool("cfsctl"), victim, "oci", "fsck", *case.arguments, "--json").stdout)
    found = json.loads(ours(victim, "oci", "fsck", *case.arguments, "--json").stdout)
    assert list(found) == [*expected, "findings"]
    for document in (expected, found):  # where ours finds more in the repository than theirs
        document.pop("repo")
        document.pop("ok")
    assert comparable(found) == comparable(expected)


@oci_cases
def test_reports_on_images_are_the_same(
    case: OciCase, sound: Victim, tmp_path: Path, tool: Callable[[str], Path]
) -> None:
    victim = sound.copy(tmp_path)
    case.damage(victim)

    def images(done: subprocess.CompletedProcess[str]) -> list[str]:
        return lines(done.stdout[done.stdout.index("oci images:") :])

    expected = theirs(tool("cfsctl"), victim, "oci", "fsck", *case.arguments)
    assert images(ours(victim, "oci", "fsck", *case.arguments)) == images(expected)
