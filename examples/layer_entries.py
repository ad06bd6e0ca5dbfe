"""List the largest files of an image, without unpacking anything.

python examples/layer_entries.py /path/to/repository TAG
"""

from __future__ import annotations

import os
import sys

from composefs_async import Repository
from composefs_async.oci import catalogue, stored_layers


def main(repository: str, tag: str) -> None:
    with Repository.open_path(repository) as repo:
        image = catalogue.open_image(repo, tag)
        entries = [entry for layer in image.layers for entry in stored_layers.layer_entries(repo, layer)]
    for entry in sorted(entries, key=lambda entry: -entry.size)[:10]:
        print(f"{entry.size:12}  /{os.fsdecode(entry.path)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
