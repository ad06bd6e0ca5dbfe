"""The root of the command line: global options, which module has which command, and errors.

Owns how a run ends: one line ``composefs-async: …`` on standard error and a code of `exit_codes`.  With
COMPOSEFS_ASYNC_TRACEBACK set in the environment, errors come with their traceback instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import click
from click.exceptions import NoSuchOption

from ..digest import Algorithm
from .context import REPO_VARIABLE, Settings
from .exit_codes import BROKEN_PIPE, INTERRUPTED, TABLE, USAGE, describe, exit_code, single
from .groups import PROGRAM as _NAME
from .groups import LazyGroup
from .interrupts import second_ends_all
from .output import drop_output, printable, say

__all__ = ["app", "run"]

_COMPLETION = "_COMPOSEFS_ASYNC_COMPLETE"
"""In the environment while a shell asks for completions (click, "Shell Completion")."""
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in TABLE)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"composefs-async {version('composefs-async')}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    sections={
        "Repositories": {
            "init": ("repository", "Create a repository."),
            "doctor": ("doctor", "What this directory, file system and kernel can do."),
            "demo": ("demo", "Import an image made of this machine's files, and verify it."),
            "upgrade": ("upgrade", "Give a repository from before meta.json existed one that fits."),
            "refs": ("app", "References: the names that keep streams and images."),
        },
        "OCI images": {
            "oci": ("app", "Images and layers in the form of OCI."),
            "publish": ("exchange", "Send an image to a store."),
            "fetch": ("exchange", "Bring an image from a store."),
            "copy": ("exchange", "Copy an image to another repository, also over ssh."),
            "serve": ("exchange", "Be the other side of a copy over ssh."),
            "store": ("app", "Stores: places of images for many machines."),
            "fleet": ("app", "Many images into a store, by many machines."),
        },
        "Trees and EROFS images": {
            "ls": ("erofs_images", "List a directory of an image."),
            "tree": ("erofs_images", "Draw a directory of an image as a tree."),
            "cat": ("repository", "Print a file of an image, or the content of a stream."),
            "cp": ("repository", "Copy a file out of an image."),
            "diff": ("erofs_images", "Print what is different in two images."),
            "explain": ("erofs_images", "Say why an image has not the digest it should have."),
            "create-image": ("trees", "Store a directory and an image of it."),
            "create-dumpfile": ("trees", "Print a directory as a dump file."),
            "compute-id": ("trees", "Print the id that the image of a directory would have."),
            "compute-karg": ("trees", "Print the kernel argument for the bootable image of a directory."),
            "images": ("erofs_images", "List the EROFS images that have a name."),
            "import-image": ("erofs_images", "Store an EROFS image from standard input."),
            "image-objects": ("erofs_images", "List the objects that an image refers to."),
            "dump-files": ("erofs_images", "Print files of an image as lines of a dump file."),
        },
        "Mounts and boot": {
            "mount": ("mounts", "Mount an image."),
            "umount": ("mounts", "Remove a mount."),
            "boot": ("app", "What machines boot: kernel images and boot entries."),
        },
        "Maintenance": {
            "gc": ("maintenance", "Remove what nothing with a name needs."),
            "fsck": ("fsck", "Check everything in the repository."),
            "du": ("usage", "What tags and images cost, and what removing them would free."),
            "leases": ("maintenance", "What keeps the content of interrupted imports."),
            "transaction": ("maintenance", "Keep gc away for a while."),
        },
        "Help": {
            "help": ("topics", "Show a page of the documentation."),
            "completion": ("topics", "Print what a shell needs to complete commands, options and tags."),
        },
        "C programs": {
            "mkcomposefs": ("c_programs", "Make an image file as the C program of this name does."),
            "composefs-info": ("c_programs", "Look into image files as the C program of this name does."),
        },
    },
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--repo", type=click.Path(readable=False), help=f"The repository's directory.  [env var: {REPO_VARIABLE}]"
)
@click.option("--user", is_flag=True, help="The repository of this user, ~/.var/lib/composefs.")
@click.option("--system", is_flag=True, help="The repository of the system, /sysroot/composefs.")
@click.option(
    "--hash", "algorithm", type=click.Choice([known.value for known in Algorithm]), help="Refuse any other algorithm."
)
@click.option(
    "--erofs-version",
    type=click.IntRange(0, 2),
    help="Make images in this layout, not in those that the repository wants.",
)
@click.option("--no-repo", is_flag=True, help="Open no repository, for commands that can do without one.")
@click.option("--no-upgrade", is_flag=True, hidden=True, help="Accepted for cfsctl; nothing is upgraded implicitly.")
@click.option("--insecure", is_flag=True, hidden=True, help="Tolerate objects that fs-verity does not protect.")
@click.option("--require-verity", is_flag=True, help="Refuse a repository that is insecure.")
@click.option(
    "--loop",
    type=click.Choice(["auto", "asyncio", "uvloop", "trio"]),
    default="auto",
    show_default=True,
    help="Which event loop; auto is uvloop where it is installed.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors, but no progress, notes and accounts.")
@click.option("-v", "--verbose", count=True, help="Tell on standard error what is done; -vv tells more.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def app(
    ctx: click.Context,
    *,
    repo: str | None,
    user: bool,
    system: bool,
    algorithm: str | None,
    insecure: bool,
    require_verity: bool,
    loop: str,
    erofs_version: int | None,
    no_repo: bool,
    no_upgrade: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """composefs repositories: content-addressed files, OCI layers, EROFS images.

    Without --repo, --user or --system it is the repository that COMPOSEFS_ASYNC_REPO names; otherwise the system's for
    root and the user's for others.
    """
    if (repo is not None) + user + system > 1:
        raise click.UsageError("--repo, --user and --system exclude each other")
    if no_repo and (repo is not None or user or system):
        raise click.UsageError("--no-repo excludes --repo, --user and --system")
    if repo == "":
        raise click.UsageError("--repo is empty")
    ctx.obj = Settings.of_options(ctx.params)
    if verbose:
        ctx.call_on_close(_log(verbose))
    elif not quiet:
        ctx.call_on_close(_notes())


def _log(verbose: int) -> Callable[[], None]:
    """Let the log of the package come on standard error until the returned function is called."""
    import logging

    log, handler = logging.getLogger("composefs_async"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)

    def end() -> None:
        log.removeHandler(handler)
        log.setLevel(before)

    return end


def _notes() -> Callable[[], None]:
    """Print what is logged as a warning about bootable images, which no result tells, as notes."""
    import logging

    from .account import note

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage())

    log, handler = logging.getLogger("composefs_async.boot"), Notes(logging.WARNING)
    log.addHandler(handler)
    return lambda: log.removeHandler(handler)


@click.command(
    cls=LazyGroup,
    sections={
        "Images": {
            "pull": ("oci_pull", "Import an image."),
            "images": ("oci_images", "List the images."),
            "inspect": ("oci_images", "Print what an image is."),
            "layers": ("oci_images", "List the layers of an image, and what each adds."),
            "tag": ("oci_images", "Name an image."),
            "untag": ("oci_images", "Remove the name of an image."),
            "build": ("oci_build", "Make an image of directories and tars."),
            "config": ("oci_build", "Make an image with other settings out of one."),
            "dump": ("oci_trees", "Print the tree of an image as a dump file."),
            "compute-id": ("oci_trees", "Print the id of the EROFS image of an image."),
            "mount": ("oci_trees", "Mount an image."),
            "fsck": ("oci_check", "Check images and the repository."),
            "upgrade": ("oci_upgrade", "Make what images lack: EROFS images, and manifests."),
            "index-contents": ("oci_images", "Let pulls of zstd:chunked layers find the files of an image."),
        },
        "Layers": {
            "layer": ("oci_layers", "Print a layer as the tar that it was."),
            "ls-layer": ("oci_layers", "List the members of a layer."),
            "import-layer": ("oci_layers", "Import a layer from standard input."),
        },
        "Booting": {
            "seal": ("oci_boot", "Write the digests of EROFS images into an image directory."),
            "prepare-boot": ("oci_boot", "Let a machine boot an image."),
            "unprepare-boot": ("oci_boot", "Let a machine boot an image no more."),
        },
        "Registries": {
            "push": ("registry_pushing", "Push an image to a registry."),
            "copy": ("registry_copying", "Copy an image to an archive, a directory, a daemon or a registry."),
            "tags": ("registry_reading", "List the tags in a registry."),
            "catalog": ("registry_reading", "List the repositories of a registry."),
            "manifest": ("registry_reading", "Manifests and indexes in registries."),
            "blob": ("registry_reading", "Blobs in registries."),
            "referrers": ("registry_reading", "List what refers to an image in a registry."),
            "ratelimit": ("registry_reading", "Print how often a registry may be asked."),
            "ping": ("registry_reading", "Ask whether there is a registry."),
            "login": ("registry_login", "Keep credentials of a registry."),
            "logout": ("registry_login", "Forget credentials of a registry."),
        },
    },
)
def oci() -> None:
    """Images and layers in the form of OCI."""


@click.command(
    cls=LazyGroup,
    sections={
        "Commands": {
            "check": ("boot", "Check whether kernel images and boot entries boot what is in the repository."),
            "labels": ("boot", "Print the SELinux labels that the files of a tree get by its own policy."),
        },
    },
)
def boot() -> None:
    """What machines boot: kernel images and boot entries."""


@click.command(
    cls=LazyGroup,
    sections={
        "Commands": {
            "init": ("store", "Make a store."),
            "ls": ("store", "List the names."),
            "du": ("store", "What names cost."),
            "fsck": ("store", "Check everything in a store."),
            "gc": ("store", "Delete what no name needs."),
            "index": ("store", "Write an index for tools that read OCI image directories."),
            "table": ("store", "Print where the objects of a name are."),
            "mirror": ("store", "Make a store a copy of another one."),
            "remove": ("store", "Remove names."),
        },
    },
)
def store() -> None:
    """Stores: directories, web servers and object stores with images for many machines."""


@click.command(
    cls=LazyGroup,
    sections={
        "Commands": {
            "convert": ("fleet", "Convert the images of a list."),
            "status": ("fleet", "Tell which images of a list are there."),
        },
    },
)
def fleet() -> None:
    """Conversion of many images into a store: on threads, on Dask, or in shards of an array of jobs."""


@click.command(
    cls=LazyGroup,
    sections={
        "Commands": {
            "list": ("refs", "List the references."),
            "add": ("refs", "Add a reference."),
            "rename": ("refs", "Rename a reference."),
            "remove": ("refs", "Remove references."),
            "prune": ("refs", "Remove records of OCI referrers that lead nowhere."),
        },
    },
)
def refs() -> None:
    """References: the names that keep streams and images when garbage is collected."""


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit code, and prints at most one line for an error."""
    with second_ends_all():
        code = _guarded(lambda: _invoke(arguments))
    # What is still in the buffer may meet a full disk or a closed pipe; at exit Python would only complain.
    return _guarded(sys.stdout.flush) or code


def _invoke(arguments: list[str]) -> object:
    if _COMPLETION in os.environ:
        return app.main(arguments, prog_name=_NAME)
    # Not `main`, which has its own idea of what a broken pipe means.
    with app.make_context(_NAME, list(arguments)) as context:
        return app.invoke(context)


def _guarded(work: Callable[[], object]) -> int:
    try:
        result = work()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return USAGE
    except click.UsageError as error:
        return _failed(_usage(error), USAGE)
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", INTERRUPTED)
    except BaseException as error:
        return _explained(error)
    return result if isinstance(result, int) else 0


def _usage(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else _NAME
    text = error.format_message().rstrip(".")
    if isinstance(error, NoSuchOption) and any(error.option_name in option.opts for option in app.params):
        return f"{error.option_name} belongs before the command: {_NAME} {error.option_name} …"
    return f"{text}{' See' if text.endswith('?') else '; see'} '{command} --help'"


def _explained(error: BaseException) -> int:
    first, more = single(error)
    if os.environ.get("COMPOSEFS_ASYNC_TRACEBACK") or isinstance(first, SystemExit):
        raise error
    code = exit_code(first)
    if isinstance(first, OSError):
        drop_output()
    if code == BROKEN_PIPE:
        return code
    if code == INTERRUPTED:
        return _failed("interrupted", code)
    return _failed(describe(first) + (f" (and {more} more)" if more else ""), code)


def _failed(text: str, code: int) -> int:
    with contextlib.suppress(OSError):
        click.echo(f"{_NAME}: {printable(' '.join(text.split()))}", err=True)
    return code
