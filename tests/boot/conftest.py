"""Trees and policies for the tests of bootable images."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from composefs_async._zstd import zstd
from composefs_async.boot.matching import re2_module
from composefs_async.tree.inodes import NO_XATTRS, Directory, ExternalFile, InlineFile, Inode, Special, Symlink

VECTORS = Path(__file__).parent.parent / "vectors" / "boot"
POLICY = "etc/selinux/t/contexts/files"
"""Where `with_policy` puts the files of a policy."""

ENGINES = [
    "python",
    pytest.param("re2", marks=pytest.mark.skipif(re2_module() is None, reason="google-re2 is not installed")),
]

Content = bytes | str | None | Inode
"""Of a file; of a symbolic link its target; None is a directory."""


def directory(mtime_ns: int = 0) -> Directory:
    return Directory(stat.S_IFDIR | 0o755, 2, 0, 0, mtime_ns)


def make_tree(entries: dict[str, Content]) -> Directory:
    """A tree in memory; directories above are made."""
    root = directory()
    for path, content in entries.items():
        *above, name = path.strip("/").encode().split(b"/")
        place = root
        for each in above:
            child = place.children.setdefault(each, directory())
            assert isinstance(child, Directory)
            place = child
        place.children[name] = _inode(content)
    return root


def _inode(content: Content) -> Inode:
    if content is None:
        return directory()
    if isinstance(content, Inode):
        return content
    if isinstance(content, str):
        return Symlink(stat.S_IFLNK | 0o777, 1, 0, 0, 0, NO_XATTRS, content.encode())
    return InlineFile(stat.S_IFREG | 0o644, 1, 0, 0, 0, NO_XATTRS, content)


def pipe() -> Special:
    return Special(stat.S_IFIFO | 0o644, 1, 0, 0, 0)


def sparse(size: int) -> ExternalFile:
    return ExternalFile(stat.S_IFREG | 0o644, 1, 0, 0, 0, NO_XATTRS, size, None)


def with_policy(entries: dict[str, Content], **files: str) -> dict[str, Content]:
    """*entries* and a policy; ``contexts``, ``local``, ``homedirs``, ``subs``, ``subs_dist`` are its files."""
    found: dict[str, Content] = {"etc/selinux/config": b"SELINUXTYPE=t\n", **entries}
    for name, text in files.items():
        suffix = "" if name == "contexts" else f".{name}"
        found[f"{POLICY}/file_contexts{suffix}"] = text.encode()
    return found


def no_reading(path: bytes, inode: ExternalFile) -> bytes:
    raise AssertionError(f"{path!r} must not be read")


def labels_of(root: Directory) -> dict[str, str | None]:
    from composefs_async.tree.walk import walk

    return {
        path.decode(errors="surrogateescape"): dict(inode.xattrs).get(b"security.selinux", b"-").decode()
        for path, inode in walk(root)
    }


@pytest.fixture(scope="session")
def debian_policy() -> dict[str, bytes]:
    """The files of Debian's policy."""
    content = zstd.decompress((VECTORS / "debian-policy.tar.zst").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = ((each.name, archive.extractfile(each)) for each in archive)
        return {name: file.read() for name, file in members if file is not None}


# -- B2: all corners of a policy in one tree ---------------------------------------------------

B2_FILES = (
    "opt/exact", "opt/other", "home/u/x", "srv/home2", "srv/home/in/f", "a/f", "a/sub/f", "b/f", "cc/f", "boot/vmlinuz",
    "opt/d/new\nline", "nn/none", "nn/q", "usr/bin/ls",
)  # fmt: skip
B2_POLICY = {
    "file_contexts": (
        "# comment\n/.*\tu:o:default:s0\n/\t-d\tu:o:root:s0\n/opt/exact\t--\tu:o:exact:s0\n/opt/.*\tu:o:opt:s0\n"
        "/opt/d/.*\t--\tu:o:d:s0\n/home/[^/]+/x\t--\tu:o:base:s0\n/home(/.*)?\tu:o:home:s0\n/srv/home2\tu:o:home2:s0\n"
        "/b(/.*)?\tu:o:b:s0\n/cc(/.*)?\tu:o:cc:s0\n/nn/none\t<<none>>\n/nn/(?!q).*\tu:o:notq:s0\n/g1/.*\tu:o:g1:s0\n"
        "/g2/.*\tu:o:g2:s0\n/g3/.*\tu:o:g3:s0\n"
    ),
    "file_contexts.local": "/home/[^/]+/x\t--\tu:o:local:s0\n",
    "file_contexts.homedirs": "/home/[^/]+/x\t--\tu:o:homedirs:s0\n",
    "file_contexts.subs": "/srv/home /home\n/a /b\n",
    "file_contexts.subs_dist": "# c\n/b /cc\n/a /cc\n",
}
_TIME = 1_700_000_000_500_000_000


def make_b2(root: Path) -> Path:
    """The directory B2, with every time, mode and link."""
    policy = {f"{POLICY}/{name}": text for name, text in B2_POLICY.items()}
    config = "SELINUX=enforcing\n#SELINUXTYPE=no\n SELinuxType = t \n"
    for name, text in {**dict.fromkeys(B2_FILES, ""), **policy, "etc/selinux/config": config}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("boot/grub", "sysroot/x", "run/x", "g1", "g2", "g3"):
        (root / name).mkdir(parents=True)
    (root / "g1/h").write_text("x")
    for name in ("g2/h", "g2/h2", "g3/h", "g3/h2", "g1/h2"):
        os.link(root / "g1/h", root / name)
    for above, _, files in os.walk(root, topdown=False):
        for name in files:
            Path(above, name).chmod(0o644)
            os.utime(Path(above, name), ns=(_TIME, _TIME))
        Path(above).chmod(0o755)
        os.utime(above, ns=(_TIME, _TIME))
    os.utime(root / "usr", ns=(1_700_000_100_250_000_000,) * 2)
    os.utime(root / "boot", ns=(1_700_000_200_750_000_000,) * 2)
    return root


@pytest.fixture
def b2(tmp_path: Path) -> Path:
    return make_b2(tmp_path / "b2")


# -- B1: an image without a policy -------------------------------------------------------------

B1_FILES = {
    "usr/lib/os-release": b'NAME="Demo OS"\nID=demo\nVERSION_ID=7\nPRETTY_NAME="Demo OS 7"\n',
    "etc/hostname": b"h\n",
    "usr/bin/sh": b"#!" * 100,
    "run/gone": b"x",
    "boot/grub.cfg": b"x",
    "usr/lib/modules/6.1.0-demo/vmlinuz": b"KERNEL" * 1000,
    "usr/lib/modules/6.1.0-demo/initramfs.img": b"INITRD" * 500,
}


def layer_of(files: dict[str, bytes | str], directories: tuple[str, ...] = ("boot", "sysroot", "var", "run")) -> bytes:
    """A layer with *files* and the directories above them; text is the target of a symbolic link."""
    with io.BytesIO() as out, tarfile.open(fileobj=out, mode="w") as archive:
        made: dict[str, None] = {}
        for name in (*directories, *files):
            parts = name.split("/")
            for depth in range(1, len(parts) + (name in directories)):
                made.setdefault("/".join(parts[:depth]))
        for name in made:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode, member.mtime = 0o644, 1_700_000_001
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        archive.close()
        return out.getvalue()


def write_layout(place: Path, layer: bytes, tag: str = "demo") -> str:
    """An image directory with one image of one layer; returns the reference of the image."""
    import hashlib
    import json

    (place / "blobs/sha256").mkdir(parents=True)

    def blob(content: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (place / "blobs/sha256" / digest).write_bytes(content)
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    packed = blob(layer, "layer.v1.tar")
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [packed],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (place / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{place}:{tag}"


@pytest.fixture
def b1(tmp_path: Path) -> str:
    """The reference of the image B1."""
    return write_layout(tmp_path / "b1", layer_of(dict(B1_FILES)))
