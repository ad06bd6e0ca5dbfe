"""What du says is freed, beside what cfsctl's gc says that it would delete."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"


def test_what_a_name_frees_is_what_gc_deletes_without_it(tmp_path: Path, cfsctl: Callable[..., Any]) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, insecure=True) as repo:
        for case in ("basic", "one", "artifact"):
            anyio.run(partial(pull, repo, f"oci:{LAYOUTS}/{case}", tag=case, platform=Platform("linux", "amd64")))
        repo.ensure_object(b"garbage" * 1000)
        usage = repo.usage()
    program = cfsctl(path)

    def deletes() -> tuple[int, int]:
        found = re.search(rb"Objects: (\d+) removed \((\d+) bytes\)", program("gc", "--dry-run"))
        assert found
        return int(found[1]), int(found[2])

    assert deletes() == (usage.garbage.objects, usage.garbage.size)
    for each in usage.names:
        link = path / each.category / "refs" / each.reference
        target = link.readlink()
        link.unlink()
        assert deletes() == (usage.garbage.objects + each.frees.objects, usage.garbage.size + each.frees.size)
        link.symlink_to(target)
