"""Check a repository, mend it from another one if anything is damaged, and remove garbage.

python examples/keep_healthy.py /path/to/repository /path/to/another
"""

from __future__ import annotations

import sys

import anyio

from composefs_async import Repository


async def main(repository: str, source: str) -> None:
    async with await Repository.open_path_async(repository) as repo:
        found = await repo.fsck_async()
        for finding in found.findings:
            print(finding.text)
        if not found.ok:
            mended = await repo.repair_async([source])
            for action in mended.actions:
                print(f"{action.path}: {action.action}")
            print("whole again" if mended.ok else f"{len(mended.unrepaired)} problems remain")
        # Importers of other processes go on; whoever has the repository open meanwhile is waited for.
        removed = await repo.gc_async(timeout=60)
        print(f"{removed.objects_removed} objects removed, {removed.objects_bytes} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    anyio.run(main, *sys.argv[1:])
