"""The commands gc, leases and transaction."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composefs_async._maintenance import leases
from composefs_async.cli import maintenance, progress
from composefs_async.repository import Repository, state_of

from .conftest import Cli

DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with one object that is garbage, of 11 bytes."""
    path = tmp_path / "repo"
    with Repository.init(path, insecure=True) as repo:
        repo.ensure_object(b"hello world")
    return path


def test_gc_prints_what_cfsctl_prints(cli: Cli, place: Path) -> None:
    on = cli.on(place)
    dry = on("gc", "-n").good()
    assert (dry.text, dry.err) == ("Dry run (no files deleted):\nObjects: 1 would be removed (11 bytes)\n", "")
    with Repository.open_path(place) as repo:
        image = repo.write_image(b"no image")
        repo.ensure_object(b"12")
    done = on("gc", "-r", "unknown").good()
    assert done.text == "Objects: 3 removed (21 bytes)\nPruned symlinks: 1 images, 0 streams\n"
    assert done.err == "note: --root unknown: no stream or image has this name, so nothing was kept for it\n"
    assert not os.path.lexists(place / "images" / image.hex())
    assert on("gc").good().text == "Objects: 0 removed (0 bytes)\n"


def test_roots_are_kept(cli: Cli, place: Path) -> None:
    with Repository.open_path(place) as repo:
        images = [repo.write_image(content) for content in (b"one", b"two", b"three")]
    done = cli.on(place)("gc", "-r", images[0].hex(), "--root", images[1].hex()).good()
    assert done.text == "Objects: 2 removed (16 bytes)\nPruned symlinks: 1 images, 0 streams\n"


def test_what_is_strange_is_told_on_standard_error(cli: Cli, place: Path) -> None:
    (place / "streams/refs").mkdir(parents=True)
    os.symlink("../gone\x1b[31m", place / "streams/refs/a\x1b")
    os.symlink("x", place / ".symlink-0123456789ab")
    with Repository.open_path(place) as repo:
        leases.begin(state_of(repo), DIGEST, "oci:here")
        repo.ensure_object(b"young")
        young = repo.gc(dry_run=True).objects_leased
    dry = cli.on(place)("gc", "-n").good()
    assert dry.err.splitlines()[0] == "note: would remove .symlink-0123456789ab, left by an interrupted operation"
    done = cli.on(place)("gc").good()
    assert done.text.startswith("Objects: ")
    assert done.err.splitlines() == [
        "note: removed .symlink-0123456789ab, left by an interrupted operation",
        f"note: objects of interrupted imports that stay: {young}; see 'composefs-async leases'",
        r"note: broken-symlink: streams/refs/a\x1b",
    ]


def test_gc_in_json(cli: Cli, place: Path) -> None:
    (place / "streams/refs").mkdir(parents=True)
    os.symlink("../gone", place / "streams/refs/a")
    assert cli.on(place)("gc", "--json", "--dry-run").good().json == {
        "dry_run": True,
        "objects_removed": 1,
        "objects_bytes": 11,
        "images_pruned": 0,
        "streams_pruned": 0,
        "pruned": [],
        "leftovers": [],
        "objects_leased": 0,
        "mounted": [],
        "objects_missing": 0,
        "unknown_roots": [],
        "quarantines": [],
        "notes": [{"type": "broken-symlink", "path": "streams/refs/a"}],
        "blobs_released": 0,
    }


def test_progress_of_gc_is_shown_on_standard_error(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on, result = cli.on(place), "Dry run (no files deleted):\nObjects: 1 would be removed (11 bytes)\n"
    lines = on("gc", "-n", "--progress", "json").good()
    events = [json.loads(line) for line in lines.err.splitlines()]
    assert events[0] == {"event": "collect-progress", "stage": "follow", "done": 0, "total": 0}
    assert events[-1] == {"event": "collect-progress", "stage": "compare", "done": 256, "total": 256}
    bars = on("gc", "-n", "--progress", "bars").good()
    assert re.search(r"directories compared ━+ 256/256", bars.err)
    assert on("gc", "-n", "--progress", "none").good().err == on("gc", "-n", "--progress", "plain").good().err == ""
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    plain = on("gc", "-n", "--progress", "plain").good()
    assert plain.err.splitlines()[0] == "streams and images: 0"
    assert plain.err.splitlines()[-1] == "directories compared: 256 of 256"
    assert lines.text == bars.text == plain.text == result


@pytest.mark.parametrize("option", [["--no-wait"], ["--timeout", "0.02"]])
def test_gc_does_not_wait_longer_than_told(cli: Cli, place: Path, option: list[str]) -> None:
    with Repository.open_path(place):
        assert "in use" in cli.on(place)("gc", *option).failed(8).err
    cli.on(place)("gc", *option).good()


def test_gc_that_nobody_sees_does_not_wait_for_ever(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_TIMEOUT", 0.02)
    with Repository.open_path(place):
        assert "in use" in cli.on(place)("gc").failed(8).err


def test_waiting_and_not_waiting_exclude_each_other(cli: Cli, place: Path) -> None:
    assert "exclude" in cli.on(place)("gc", "--no-wait", "--timeout", "1").failed(2).err


def test_a_transaction_keeps_gc_away_while_its_command_runs(cli: Cli, place: Path) -> None:
    on = [sys.executable, "-m", "composefs_async", "--repo", str(place)]
    inner = [*on, "gc", "--no-wait"]
    done = subprocess.run([*on, "transaction", "--", *inner], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (8, "")
    assert subprocess.run(inner, capture_output=True, check=False).returncode == 0


def test_a_transaction_without_a_command_lasts_until_it_is_ended(cli: Cli, place: Path) -> None:
    command = [sys.executable, "-m", "composefs_async", "--repo", str(place), "transaction"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while "FLOCK" not in locks(process.pid):
            assert process.poll() is None
        cli.on(place)("gc", "--no-wait").failed(8, "in use by ", f" ({process.pid})")
        process.terminate()
    cli.on(place)("gc", "--no-wait").good()


def locks(pid: int) -> str:
    lines = Path("/proc/locks").read_text().splitlines()
    return "\n".join(line for line in lines if f" {pid} " in line)


def test_leases_are_listed_and_dropped(cli: Cli, place: Path) -> None:
    on = cli.on(place)
    assert on("leases").good().out == b""
    with Repository.open_path(place) as repo:
        stream = repo.ensure_object(b"layer").id
        leases.begin(state_of(repo), DIGEST, "oci:here\x1b").finished("sha256:layer", stream)
        (lease,) = repo.leases()
    listed = on("leases").good().text
    assert listed.startswith(f"{DIGEST}  until 2")
    assert listed.endswith("  1 layers  oci:here\\x1b\n")
    assert on("leases", "--json").good().json["leases"] == [
        {
            "manifest_digest": DIGEST,
            "reference": "oci:here\x1b",
            "started": lease.started / 1e9,
            "expires": lease.expires,
            "layers": {"sha256:layer": stream.hex()},
        }
    ]
    on("leases", "drop", DIGEST).good()
    on("leases", "drop", DIGEST).failed(3, DIGEST)
    assert on("leases", "--json").good().json == {"leases": []}


# -- what repairs put aside --------------------------------------------------------------------


def test_gc_deletes_what_repairs_put_aside_long_ago(cli: Cli, repo: Path, tmp_path: Path) -> None:
    place = repo / ".composefs-async/quarantine"
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"stays")
    for name in ("20200101T000000Z", "20200101T000000Z-2", now, "notes", "20209999T000000Z"):
        (place / name / "objects/ab").mkdir(parents=True)
        (place / name / "objects/ab/cd").write_bytes(b"?")
        (place / name / "link").symlink_to(tmp_path / "outside")
    old = [f".composefs-async/quarantine/20200101T000000Z{end}" for end in ("", "-2")]
    before = sorted(place.rglob("*"))
    assert cli.on(repo)("gc", "--json").good().json["quarantines"] == []
    run = cli.on(repo)("gc", "--dry-run", "--quarantine-older", "30d").good()
    assert [f"would remove {path}, which a repair put aside" in run.err for path in old] == [True, True]
    assert sorted(place.rglob("*")) == before
    assert cli.on(repo)("gc", "--json", "--quarantine-older", "30d").good().json["quarantines"] == old
    assert sorted(each.name for each in place.iterdir()) == sorted([now, "notes", "20209999T000000Z"])
    assert (tmp_path / "outside/file").read_bytes() == b"stays"
    assert len(cli.on(repo)("gc", "--json", "--quarantine-older", "0").good().json["quarantines"]) == 1
    assert sorted(each.name for each in place.iterdir()) == ["20209999T000000Z", "notes"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("90m", 5400), ("1.5h", 5400), ("30d", 2592000), ("2w", 1209600), ("7s", 7)]
)
def test_ages_have_units(text: str, seconds: float) -> None:
    assert maintenance.Age().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1y", "1e9", "1 d", "\u0661d", "nan"])
def test_what_is_no_age_is_refused(text: str, cli: Cli, repo: Path) -> None:
    cli.on(repo)("gc", f"--quarantine-older={text}").failed(2, "is not an age")
