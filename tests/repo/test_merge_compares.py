"""`merge_splitstream` compares objects itself where the kernel does not guard them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.errors import DigestMismatchError
from composefs_async.repository import Repository
from composefs_async.splitstream import OCI_LAYER

CONTENT = b"right" * 1000
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first byte": lambda content: b"R" + content[1:],
    "last byte": lambda content: content[:-1] + b"T",
}


@pytest.mark.parametrize("size", [len(CONTENT), 3 << 20])
@pytest.mark.parametrize("way", DAMAGE)
def test_a_changed_object_of_the_same_size_is_found(way: str, size: int, tmp_path: Path) -> None:
    content = (CONTENT * (size // len(CONTENT) + 1))[:size]
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        writer = repo.create_stream(OCI_LAYER)
        writer.write_external(content)
        repo.write_stream(writer, "s")
        assert b"".join(repo.merge_splitstream("s")) == content
        object_id = repo.ensure_object(content).id
        Path(repo.path, "objects", object_id.path).write_bytes(DAMAGE[way](content))
        with pytest.raises(DigestMismatchError) as caught:
            b"".join(repo.merge_splitstream("s"))
        assert caught.value.expected == object_id.hex()
