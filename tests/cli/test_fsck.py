"""``fsck`` and ``oci fsck``: exit codes, reports, arguments."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from composefs_async.cli import progress
from composefs_async.findings import KINDS

from .conftest import Cli

REPAIR = "note: 'composefs-async fsck --repair [FROM]...' mends what can be, with content FROM elsewhere\n"


def damage(repo: Path) -> str:
    """Returns the path of what is damaged."""
    target = sorted((repo / "streams").glob("oci-layer-*"))[0].resolve()
    content = target.read_bytes()
    target.unlink()
    target.write_bytes(content + b"x")
    return str(target.relative_to(repo))


def test_nothing_found(cli: Cli, repo: Path) -> None:
    run = cli.on(repo)("fsck").good()
    assert run.text.splitlines()[0] == "meta.json: ok"
    assert run.text.splitlines()[-1] == "status: ok"
    assert run.err == ""


def test_report_in_json(cli: Cli, repo: Path) -> None:
    found = cli.on(repo)("fsck", "--json").good().json
    assert list(found) == [
        "ok",
        "has_metadata",
        "objects_checked",
        "objects_corrupted",
        "streams_checked",
        "streams_corrupted",
        "images_checked",
        "images_corrupted",
        "broken_links",
        "missing_objects",
        "errors",
        "findings",
    ]
    assert (found["ok"], found["errors"], found["findings"]) == (True, [], [])


def test_a_check_that_takes_long_says_how_far_it_is(cli: Cli, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    lines = cli.on(repo)("fsck", "--progress", "plain").good().err.splitlines()
    assert re.fullmatch(r"streams: 1 of \d+, .* read", lines[0])
    assert re.fullmatch(r"images: \d+ of \d+, .* KiB read", lines[-1])


@pytest.mark.parametrize("command", [["fsck"], ["oci", "fsck"], ["oci", "fsck", "basic"]], ids=" ".join)
def test_damage_is_exit_code_1_in_both_forms(command: list[str], cli: Cli, repo: Path) -> None:
    path = damage(repo)
    run = cli.on(repo)(*command)
    assert (run.code, run.err) == (1, REPAIR)
    assert f"  - fsck: object-digest-mismatch: {path}: measured " in run.text
    assert "status: 1 error(s)" in run.text
    run = cli.on(repo)(*command, "--json")
    assert (run.code, run.json["ok"]) == (1, False)
    result = run.json.get("repo", run.json)
    assert len(result["errors"]) == len(result["findings"]) == result["objects_corrupted"] == 1
    assert result["findings"][0]["type"] == "object-digest-mismatch"
    assert result["findings"][0]["path"] == path


def test_notices_are_told_and_no_damage(cli: Cli, repo: Path) -> None:
    (repo / ".symlink-abc").symlink_to("x")
    run = cli.on(repo)("fsck").good()
    notice = "fsck: leftover: .symlink-abc: of an interrupted operation, or of one that is running"
    assert run.text.splitlines()[-3:] == ["status: ok", "notices: 1", f"  - {notice}"]
    assert run.err == "note: leftover: 'composefs-async gc' removes it\n"
    found = cli.on(repo)("fsck", "--json").good().json
    assert (found["errors"], found["findings"]) == ([], [{"type": "leftover", "path": ".symlink-abc", "notice": True}])


def test_the_cause_is_told_below(cli: Cli, repo: Path) -> None:
    (repo / "streams/junk").symlink_to("../meta.json")
    lines = cli.on(repo)("fsck").text.splitlines()
    at = lines.index("  - fsck: stream-open-failed: streams/junk: Opening stream 'junk'")
    assert lines[at + 1] == "      the header lacks the magic value 'SplitStream' (splitstream offset 0)"


def test_metadata_only(cli: Cli, repo: Path) -> None:
    damage(repo)
    assert "objects: not read" in cli.on(repo)("fsck", "--metadata-only").good().text.splitlines()


def test_names_from_outside_do_not_reach_the_terminal(cli: Cli, repo: Path) -> None:
    (repo / "streams/\x1b[31m").symlink_to("nowhere")
    assert "\x1b" not in cli.on(repo)("fsck").text


@pytest.mark.parametrize("command", [["fsck"], ["oci", "fsck"]], ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--limit", "fast"], "bytes a second"),
        (["--limit", "0"], "bytes a second"),
        (["--metadata-only", "--continue"], "exclude each other"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_arguments(command: list[str], arguments: list[str], word: str, cli: Cli, repo: Path) -> None:
    assert word in cli.on(repo)(*command, *arguments).failed(2).err


@pytest.mark.parametrize("command", [["fsck"], ["fsck", "--json"], ["oci", "fsck"], ["oci", "fsck", "--json"]])
def test_what_could_not_be_checked_is_exit_code_2(command: list[str], cli: Cli, repo: Path, tmp_path: Path) -> None:
    cli.on(tmp_path / "nothing")(*command).failed(2, "is not a composefs repository")
    (repo / "meta.json").write_text("{")
    assert f"{repo}/meta.json" in cli.on(repo)(*command).failed(2).err


@pytest.mark.parametrize("rate", ["50M", "64k", "1GiB/s", "1000000"])
def test_rates(rate: str, cli: Cli, empty: Path) -> None:
    assert cli.on(empty)("fsck", "--limit", rate).good().text == cli.on(empty)("fsck").good().text


def test_an_interruption_keeps_the_position(cli: Cli, repo: Path) -> None:
    position = repo / ".composefs-async/scrub.json"
    command = [sys.executable, "-m", "composefs_async", "--repo", str(repo), "fsck", "--limit", "100k"]
    process = subprocess.Popen([*command, "--progress", "json"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stderr is not None
    assert json.loads(process.stderr.readline())["event"] == "check-progress"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == [
        b"note: '--continue' goes on where this check has ended",
        b"composefs-async: interrupted",
    ]
    assert json.loads(position.read_text())["stream"].startswith("oci-")
    cli.on(repo)("fsck", "--continue").good()
    assert not position.exists()


def test_one_image(cli: Cli, repo: Path) -> None:
    assert cli.on(repo)("oci", "fsck").good().text.splitlines()[-1] == "oci images: 3/3 ok"
    assert cli.on(repo)("oci", "fsck", "basic").good().text.splitlines()[-1] == "oci images: 1/1 ok"
    cli.on(repo)("oci", "fsck", "nothing").failed(3, "tag not found: nothing")


def test_what_a_repair_does_not_know_has_a_remedy(cli: Cli, repo: Path) -> None:
    tags = repo / "streams/refs/oci"
    (tags / "basic").rename(tags / "@basic")
    run = cli.on(repo)("oci", "fsck")
    assert (run.code, run.err) == (1, f"note: invalid-ref-name: {KINDS['invalid-ref-name'].remedy}\n")
    damage(repo)
    assert cli.on(repo)("oci", "fsck").err.startswith(REPAIR)


def test_images_in_json(cli: Cli, repo: Path) -> None:
    found = cli.on(repo)("oci", "fsck", "--json").good().json
    assert list(found) == ["ok", "images_checked", "images_corrupted", "errors", "repo", "findings"]
    assert (found["ok"], found["images_checked"], found["repo"]["ok"]) == (True, 3, True)
