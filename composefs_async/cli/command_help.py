"""What the help of each command says about its arguments, and its examples.

Owns the words, so that the same thing is called the same everywhere.  Does not own what a command does, which is told
where it is defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import click

from .tag_names import ImageName

__all__ = ["COMMANDS", "CommandHelp", "complete"]

_LAYER = "Digest of the layer's tar, sha256:HEX, or NAME:NUMBER, counted from 1 as 'oci layers NAME' does."
_IMAGE = "A tag, @DIGEST of a manifest, or the first six or more digits of one."
_TREE = "An EROFS image by id or reference, or an OCI image by tag (tag:NAME in any case) or digest."
_REGISTRY = "docker://HOST/NAME[:TAG][@DIGEST]."
_HOST = "HOST[:PORT] of a registry."
_STORE = "A store: file://, https://, s3://, gs://, az:// or docker://."
_SOURCE = "Where the image is, as said above."


class CommandHelp(NamedTuple):
    """What the help of one command says."""

    arguments: Mapping[str, str]
    """By their names in the usage line."""
    examples: tuple[str, ...]
    """Without the program's name, which stands first; ``CMD | …`` if it does not."""


COMMANDS: Mapping[str, CommandHelp] = {
    "init": CommandHelp(
        {"PATH": "The directory to make it in."}, ("init /srv/composefs", "--user init", "init --insecure ./repo")
    ),
    "help": CommandHelp(
        {"TOPIC": "A page, as they are listed without it."},
        ("help", "help getting-started", "help --schema oci images"),
    ),
    "completion": CommandHelp(
        {"SHELL": "Which shell."}, ("completion bash > ~/.local/share/bash-completion/completions/composefs-async",)
    ),
    "doctor": CommandHelp(
        {"PATH": "The directory to look at."}, ("doctor", "doctor /srv", "doctor --storage /var/lib/containers/storage")
    ),
    "demo": CommandHelp({}, ("demo",)),
    "upgrade": CommandHelp({}, ("upgrade --dry-run", "--repo /srv/composefs upgrade")),
    "refs list": CommandHelp({}, ("refs list", "refs list --json")),
    "refs add": CommandHelp(
        {"REFERENCE": "A reference: streams/NAME or images/NAME.", "TARGET": "What it should lead to."},
        ("refs add images/base/stable refs/base/1.2",),
    ),
    "refs rename": CommandHelp(
        {"REFERENCE": "Its name now, as 'refs list' prints it.", "NEW": "Its name then."},
        ("refs rename images/base/stable base/old",),
    ),
    "refs remove": CommandHelp(
        {"REFERENCES": "Their names, as 'refs list' prints them."}, ("refs remove images/base/stable",)
    ),
    "refs prune": CommandHelp({}, ("refs prune --dry-run",)),
    "oci pull": CommandHelp(
        {"IMAGE": _SOURCE, "NAME": "The tag that it gets."},
        (
            "oci pull docker://docker.io/library/alpine:3 alpine:3",
            "oci pull oci:./image:latest app:latest",
            "docker save app:1 | composefs-async oci pull - app:1",
        ),
    ),
    "oci images": CommandHelp({}, ("oci images --long", "oci images --json")),
    "oci inspect": CommandHelp({"NAME": _IMAGE}, ("oci inspect app:latest", "oci inspect app:latest --config")),
    "oci index-contents": CommandHelp({"NAME": _IMAGE}, ("oci index-contents app:latest",)),
    "oci layers": CommandHelp({"NAME": _IMAGE}, ("oci layers app:latest",)),
    "oci tag": CommandHelp({"IMAGE": _IMAGE, "NAME": "The new tag."}, ("oci tag app:latest app:1.2",)),
    "oci untag": CommandHelp({"NAME": "A tag."}, ("oci untag app:1.1",)),
    "oci build": CommandHelp(
        {"TAG": "The tag that it gets."}, ("oci build app:1 --directory ./root --entrypoint '[\"/bin/app\"]'",)
    ),
    "oci config": CommandHelp(
        {"IMAGE": _IMAGE, "TAG": "The tag that the new one gets."},
        ("oci config app:1 app:1-debug --env DEBUG=1 --label stage=test",),
    ),
    "oci dump": CommandHelp({"NAME": _IMAGE}, ("oci dump app:latest > app.dump",)),
    "oci compute-id": CommandHelp(
        {"NAME": f"{_IMAGE}  Or oci:DIR[:TAG], in an image directory."},
        ("oci compute-id app:latest", "--no-repo oci compute-id oci:./image:latest"),
    ),
    "oci mount": CommandHelp(
        {"NAME": _IMAGE, "MOUNTPOINT | -- COMMAND": "A directory, or with --rootless what runs in the mount."},
        ("oci mount app:latest /mnt", "oci mount --rootless app:latest -- ls usr"),
    ),
    "oci fsck": CommandHelp({"NAME": "Check this image alone."}, ("oci fsck", "oci fsck app:latest")),
    "oci upgrade": CommandHelp({}, ("oci upgrade",)),
    "oci layer": CommandHelp(
        {"LAYER": _LAYER},
        ("oci layer app:latest:1 > layer.tar", f"oci layer sha256:{'0123456789abcdef' * 4} > layer.tar"),
    ),
    "oci ls-layer": CommandHelp(
        {"LAYER": _LAYER}, ("oci ls-layer app:latest:2", f"oci ls-layer sha256:{'0123456789abcdef' * 4}")
    ),
    "oci import-layer": CommandHelp(
        {"DIFF_ID": "Digest of the unpacked tar, sha256:HEX.", "NAME": "A reference that keeps the layer."},
        (f"oci import-layer sha256:{'0123456789abcdef' * 4} < layer.tar.gz",),
    ),
    "oci seal": CommandHelp(
        {"DIRECTORY": "An OCI image directory.", "TAG": "Which image of it, if there are several."},
        ("oci seal ./image latest",),
    ),
    "oci prepare-boot": CommandHelp(
        {"NAME": _IMAGE, "VERITY": "The id that the bootable image must have."},
        ("oci prepare-boot --dry-run os:42", "oci prepare-boot os:42"),
    ),
    "oci unprepare-boot": CommandHelp(
        {"NAME": f"{_IMAGE}  Or the id of a bootable image."}, ("oci unprepare-boot --dry-run os:41",)
    ),
    "oci push": CommandHelp(
        {"NAME": _IMAGE, "DESTINATION": "docker://HOST/NAME[:TAG]."},
        ("oci push --dry-run app:latest docker://registry.example/team/app:latest",),
    ),
    "oci copy": CommandHelp(
        {"SOURCE": f"{_IMAGE}  Or any image that 'oci pull' takes.", "DESTINATION": "Where to, as said above."},
        (
            "oci copy app:latest oci-archive:app.tar",
            "oci copy app:latest docker-archive:- | docker load",
            "oci copy --tag-pattern '1.*' docker://registry.example/app docker://mirror.example/app",
        ),
    ),
    "oci tags": CommandHelp({"IMAGE": "docker://HOST/NAME."}, ("oci tags docker://docker.io/library/alpine",)),
    "oci catalog": CommandHelp({"HOST": _HOST}, ("oci catalog registry.example",)),
    "oci manifest digest": CommandHelp(
        {"IMAGE": _REGISTRY}, ("oci manifest digest docker://docker.io/library/alpine:3",)
    ),
    "oci manifest get": CommandHelp(
        {"IMAGE": _REGISTRY}, ("oci manifest get docker://docker.io/library/alpine:3 > manifest.json",)
    ),
    "oci manifest head": CommandHelp({"IMAGE": _REGISTRY}, ("oci manifest head docker://docker.io/library/alpine:3",)),
    "oci blob get": CommandHelp(
        {"REFERENCE": "docker://HOST/NAME@DIGEST."},
        (f"oci blob get docker://registry.example/app@sha256:{'0123456789abcdef' * 4} > blob",),
    ),
    "oci blob head": CommandHelp(
        {"REFERENCE": "docker://HOST/NAME@DIGEST."},
        (f"oci blob head docker://registry.example/app@sha256:{'0123456789abcdef' * 4}",),
    ),
    "oci referrers": CommandHelp({"IMAGE": _REGISTRY}, ("oci referrers docker://registry.example/app:1",)),
    "oci ratelimit": CommandHelp({"IMAGE": _REGISTRY}, ("oci ratelimit docker://docker.io/library/alpine",)),
    "oci ping": CommandHelp({"HOST": _HOST}, ("oci ping registry.example",)),
    "oci login": CommandHelp(
        {"HOST": "HOST[:PORT] of a registry, or HOST/NAME for one of its repositories."},
        ("oci login registry.example", "oci login --username ci --password-stdin registry.example < token"),
    ),
    "oci logout": CommandHelp({"HOST": "As given to 'oci login'."}, ("oci logout registry.example",)),
    "publish": CommandHelp(
        {"IMAGE": _TREE, "URL": _STORE},
        ("publish app:latest file:///srv/store", "publish app:latest s3://bucket/images"),
    ),
    "fetch": CommandHelp(
        {"URL": f"{_STORE}  Or a repository: ssh://[USER@]HOST[:PORT]/DIRECTORY.", "NAME": "The image's name there."},
        ("fetch https://images.example/store app:latest", "fetch ssh://build.example/srv/composefs app:latest"),
    ),
    "copy": CommandHelp(
        {"IMAGE": _TREE}, ("copy app:latest --to /srv/other", "copy app:latest --to ssh://host.example/srv/composefs")
    ),
    "serve": CommandHelp({}, ("--repo /srv/composefs serve",)),
    "store init": CommandHelp({"URL": _STORE}, ("store init file:///srv/store",)),
    "store ls": CommandHelp({"URL": _STORE}, ("store ls https://images.example/store",)),
    "store du": CommandHelp({"URL": _STORE}, ("store du file:///srv/store",)),
    "store fsck": CommandHelp({"URL": _STORE}, ("store fsck s3://bucket/images",)),
    "store gc": CommandHelp({"URL": _STORE}, ("store gc --dry-run file:///srv/store",)),
    "store index": CommandHelp({"URL": _STORE}, ("store index file:///srv/store",)),
    "store table": CommandHelp(
        {"URL": _STORE, "NAME": "A name in the store."}, ("store table file:///srv/store app:latest",)
    ),
    "store mirror": CommandHelp(
        {"SOURCE": _STORE, "TARGET": "The store that becomes a copy."},
        ("store mirror s3://bucket/images file:///srv/store",),
    ),
    "store remove": CommandHelp(
        {"URL": _STORE, "NAMES": "Names in the store."}, ("store remove file:///srv/store app:1.1",)
    ),
    "fleet convert": CommandHelp(
        {"REFERENCES": "A file with one reference, as for 'oci pull', a line; - is standard input."},
        ("fleet convert images.txt --store file:///srv/store",),
    ),
    "fleet status": CommandHelp(
        {"REFERENCES": "The file that was given to 'fleet convert'."},
        ("fleet status images.txt --store file:///srv/store",),
    ),
    "ls": CommandHelp(
        {"IMAGE": _TREE, "PATH": "Of a directory in it."}, ("ls app:latest", "ls --recursive app:latest /usr")
    ),
    "tree": CommandHelp({"IMAGE": _TREE, "PATH": "Of a directory in it."}, ("tree app:latest /etc",)),
    "cat": CommandHelp(
        {"IMAGE|STREAM": f"{_TREE}  Without PATH, a stream.", "PATH": "Of a file in it."},
        ("cat app:latest /etc/os-release",),
    ),
    "cp": CommandHelp(
        {"IMAGE:PATH": "An image as for 'cat', and the path of a file in it.", "DESTINATION": "A file or a directory."},
        ("cp app:latest:/etc/os-release .",),
    ),
    "diff": CommandHelp({"BEFORE": _TREE, "AFTER": _TREE}, ("diff app:1.1 app:1.2",)),
    "explain": CommandHelp(
        {"IMAGE": f"{_TREE}  Or a directory.", "OTHER": "The tree to compare it with."},
        ("explain app:latest ./root", f"explain ./root --expected-digest {'0123456789abcdef' * 4}"),
    ),
    "create-image": CommandHelp(
        {"PATH": "A directory.", "NAME": "A reference that keeps the image."}, ("create-image ./root base/1.2",)
    ),
    "create-dumpfile": CommandHelp({"PATH": "A directory."}, ("create-dumpfile ./root > root.dump",)),
    "compute-id": CommandHelp(
        {"PATH": "A directory."}, ("compute-id ./root", "--no-repo compute-id --bootable ./root")
    ),
    "compute-karg": CommandHelp({"PATH": "A directory."}, ("--no-repo compute-karg ./root",)),
    "images": CommandHelp({}, ("images", "images --json")),
    "import-image": CommandHelp(
        {"NAME": "A reference that keeps the image."}, ("import-image base/1.2 < image.erofs",)
    ),
    "image-objects": CommandHelp({"NAME": "An id or a reference of an EROFS image."}, ("image-objects refs/base/1.2",)),
    "dump-files": CommandHelp(
        {"IMAGE": _TREE, "PATHS": "Of files and directories in it."}, ("dump-files app:latest /etc/passwd",)
    ),
    "mount": CommandHelp(
        {
            "NAME": "An id or a reference of an EROFS image.",
            "MOUNTPOINT | -- COMMAND": "A directory, or with --rootless what runs in the mount.",
        },
        ("mount refs/base/1.2 /mnt", "mount --rootless refs/base/1.2 -- ls usr"),
    ),
    "umount": CommandHelp({"MOUNTPOINT": "The directory that was given to 'mount' or 'oci mount'."}, ("umount /mnt",)),
    "boot check": CommandHelp(
        {"SOURCES": "Unified kernel images, or boot entries NAME.conf."},
        ("boot check ./os.efi",),
    ),
    "boot labels": CommandHelp(
        {"TREE": "A directory, or oci:NAME for an image of the repository."}, ("--no-repo boot labels ./root",)
    ),
    "gc": CommandHelp({}, ("gc --dry-run", "gc --timeout 60", "gc --quarantine-older 30d")),
    "fsck": CommandHelp(
        {"FROM": "With --repair, where content may come from: repositories, directories, images and stores."},
        ("fsck", "fsck --repair --dry-run oci:./image", "fsck --repair docker://registry.example/app:1"),
    ),
    "du": CommandHelp({}, ("du", "du --chart", "du --json")),
    "leases drop": CommandHelp(
        {"DIGEST_OR_NAME": "As 'leases' lists them."}, (f"leases drop sha256:{'0123456789abcdef' * 4}",)
    ),
    "transaction": CommandHelp(
        {"-- COMMAND": "What to run meanwhile."}, ("transaction -- rsync -a /srv/composefs/ /backup/",)
    ),
    "mkcomposefs": CommandHelp(
        {"ARGUMENTS": "As the C program takes them."}, ("mkcomposefs --digest-store=./objects ./root image.erofs",)
    ),
    "composefs-info": CommandHelp({"ARGUMENTS": "As the C program takes them."}, ("composefs-info ls image.erofs",)),
}


def complete(command: click.Command, path: str, program: str) -> None:
    """Give the command at *path* the help of its arguments, and its examples as the end of its page."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            complete(each, f"{path} {name}", program)
    if path not in COMMANDS:
        return
    arguments, examples = COMMANDS[path]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            parameter.help = arguments.get(argument_name(parameter), "")
            if parameter.help.startswith((_IMAGE, _TREE)) and isinstance(parameter.type, click.types.StringParamType):
                parameter.type = ImageName()
    lines = [each if f"{program} " in each else f"{program} {each}" for each in examples]
    command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def argument_name(argument: click.Argument) -> str:
    """How `CommandHelp.arguments` calls it: as the usage line, without brackets and dots."""
    return argument.human_readable_name.strip("[].").replace("...", "")
