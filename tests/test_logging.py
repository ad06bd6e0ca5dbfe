"""What the package tells `logging`: what happened to a repository, and never a failure, which is an exception."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from composefs_async import Repository


def test_operations_tell_what_they_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "composefs_async")
    path = str(tmp_path / "repo")
    with Repository.init(path, insecure=True) as repo:
        image = repo.write_image(b"image", "name")
        repo.ensure_object(b"garbage" * 100)
        repo.remove_reference("images", "name")
        repo.gc(dry_run=True)
        repo.gc()
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        (
            "composefs_async.repository",
            "INFO",
            f"{path}: published images/{image.hex()}, images/refs/name",
        ),
        ("composefs_async.repository", "INFO", f"{path}: removed images/refs/name"),
        ("composefs_async.gc", "INFO", f"{path}: would collect 2 objects of 705 bytes"),
        ("composefs_async.gc", "INFO", f"{path}: collected 2 objects of 705 bytes"),
    ]


def test_findings_are_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, insecure=True) as repo:
        stored = repo.ensure_object(b"content" * 100)
        (path / "objects" / stored.id.path).write_bytes(b"damaged" * 100)
        (finding,) = repo.fsck().findings
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("composefs_async.fsck", "WARNING", f"{path}: objects/{stored.id.path}: {finding.text}")]
