"""Commands that keep credentials of registries: ``oci login``, ``oci logout``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from .account import tell
from .context import Settings
from .output import printable
from .registry_options import RegistryCommand, access_of, access_options, run_within, transfer_of, transfer_options

__all__ = ["login", "logout"]


@click.command(cls=RegistryCommand)
@click.argument("host")
@access_options()
@transfer_options
@click.pass_obj
def login(settings: Settings, /, *, host: str, **options: Any) -> None:
    """Keep a name and a password for HOST, or HOST/NAME, where podman keeps them; they are tried first."""
    if options["registry_token"] or options["no_creds"]:
        raise click.UsageError("a name and a password can be kept, nothing else")
    if not options["creds"] and not options["username"]:
        if not sys.stdin.isatty():
            raise click.UsageError("there is no --username, and no terminal to ask on")
        options["username"] = click.prompt("Username", err=True)
    path, host = run_within(settings, options["timeout"], partial(_login, settings, host, options))
    tell(f"Login Succeeded! {printable(host)} is in {printable(path)}")


async def _login(settings: Settings, host: str, options: dict[str, Any]) -> tuple[str, str]:
    from dataclasses import replace

    from ..registry.access import Surroundings
    from ..registry.auth_files import hub_key
    from ..registry.client import RegistryClient
    from ..registry.credentials import login_file, store_credentials

    host = host.removeprefix("docker://").rstrip("/")
    access = access_of(options, settings=settings)
    credentials = access.credentials
    assert credentials is not None
    authfile, access = access.authfile, replace(access, authfile=None)
    async with RegistryClient(access, transfer_of(options)) as client:
        await client.ping(host.partition("/")[0])
    path = login_file(replace(access, authfile=authfile), Surroundings.of(access))
    await store_credentials(path, hub_key(host), credentials.username, credentials.password.reveal())
    return str(path), host


@click.command
@click.argument("host")
@click.option("--authfile", type=click.Path(), help="The file to remove it from.")
@click.pass_obj
def logout(settings: Settings, /, *, host: str, authfile: str | None) -> None:
    """Forget the credentials of HOST, or HOST/NAME."""
    from ..registry.access import Access, Surroundings
    from ..registry.auth_files import hub_key
    from ..registry.credentials import forget_credentials

    host = host.removeprefix("docker://").rstrip("/")
    access = Access(authfile=Path(authfile) if authfile else None)
    removed = settings.run(partial(forget_credentials, access, Surroundings.of(access), hub_key(host)))
    tell(f"Removed login credentials for {printable(host)}" if removed else f"Not logged in to {printable(host)}")
