"""Make an image of a tree, as a builder like osbuild or mkosi would at the end of a build, and write it as an archive.

python examples/build_image.py /path/to/tree oci-archive:/path/to/image.tar

No container engine, no root but for reading the tree, and the same archive to the byte whenever the tree is the same.
SOURCE_DATE_EPOCH, if it is set, is the time of the image and the latest one of its files.
"""

from __future__ import annotations

import sys
import tempfile

import anyio

from composefs_async import Repository
from composefs_async.oci import ConfigSettings, build_image, export_images


async def main(tree: str, destination: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        async with await Repository.init_async(f"{place}/repo", insecure=True) as repo:
            async with build_image(repo) as builder:
                await builder.add_directory(tree, owner=(0, 0), xattrs="none")
                builder.config(ConfigSettings(cmd=["/sbin/init"], labels={"containers.bootc": "1"}))
                image = await builder.commit("built", make_images=False)
            await export_images(repo, ["built"], destination)
    print(image.manifest_digest)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    anyio.run(main, *sys.argv[1:])
