"""A descriptor that somebody gives to be an object: his file stays his."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composefs_async.errors import IntegrityError
from composefs_async.repository import Repository


@pytest.mark.parametrize("name", ["mine", ".tmp-object-mine"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_file_with_a_name_is_copied(name: str, inside: bool, tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        path = (tmp_path / "repo" if inside else tmp_path) / name
        path.write_bytes(b"content")
        stored = repo.finalize_object_tmpfile(os.open(path, os.O_RDWR), 7)
        path.write_bytes(b"changed")
        assert path.stat().st_nlink == 1
        assert repo.read_object(stored.id) == b"content"


def test_one_of_the_wrong_size_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        path = tmp_path / ".tmp-object-mine"
        path.write_bytes(b"content")
        fd = os.open(path, os.O_RDWR)
        with pytest.raises(IntegrityError):
            repo.finalize_object_tmpfile(fd, 8)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert path.read_bytes() == b"content"


def test_one_that_is_given_up_stays(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        path = tmp_path / ".tmp-object-mine"
        path.write_bytes(b"content")
        with pytest.raises(RuntimeError):
            repo.spawn_finalize_object_tmpfile(os.open(path, os.O_RDWR), 7)
        assert path.read_bytes() == b"content"
