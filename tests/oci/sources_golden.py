"""The golden archives and stores: unpacking them, and what must come out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VECTORS = Path(__file__).parent.parent / "vectors/sources/sources.tar.zst"

PULLED = "sha256:46a2b7d744e01af8f8bbc6600c4b91cd9747d96a2db0810d77340fa0e4586f72"
"""The manifest as it was pulled."""
MADE = "sha256:b03b741aad5c4eda66debe2217b0ae38aec5efa4474c62895b3552f1cbc0bd03"
"""The one that is made where there is none."""
PODMAN = "sha256:5e61a9d318c9517da8d076d2d66845b81ff6dbccde914935e502b61fcbf71c01"
"""After podman has packed the layers again."""
CONFIG = "sha256:be83a842b04e5c7f875d340db291fdd5a352b17ba30e1dc433878ed8fc3ae88a"
DIFF_IDS = [
    "sha256:e8368edd9c07b3e420e15e505ab0f5ad473028cc4003b95fb613c80991da619a",
    "sha256:bf88bab4f19b60dd7b0ffe983618beea52845a5c22af0e0646406335aab01bee",
    "sha256:04d16d90c9a4bc32595636e64ed10e50e6fd56671a8ac0b25f5d40a42612315d",
]


def unpack(target: Path, part: str) -> Path:
    """Unpack ``archives`` or ``stores`` below *target*, devices and attributes included where that is allowed."""
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-", "-C", str(target), part]
    options = {zstd.DecompressionParameter.window_log_max: 27}
    subprocess.run(
        command, input=zstd.decompress(VECTORS.read_bytes(), options=options), capture_output=True, check=False
    )
    return target / part
