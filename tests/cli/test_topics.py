"""The pages of the documentation on a terminal, completion in real shells, and manual pages."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from composefs_async.cli.app import app
from composefs_async.cli.command_help import COMMANDS
from composefs_async.cli.manual import pages
from composefs_async.cli.topics import script
from composefs_async.repository import Repository

DOCS = Path(__file__).parents[2] / "composefs_async" / "docs"
PROGRAM = Path(sys.executable).with_name("composefs-async")


def test_help_lists_the_topics_and_shows_each(cli: Any) -> None:
    listed = [line.split()[0] for line in cli("help").good().text.splitlines()]
    assert sorted(listed) == sorted(path.stem for path in DOCS.glob("*.md"))
    for topic in listed:
        assert cli("help", topic).good().text == (DOCS / f"{topic}.md").read_text()


def test_an_unknown_topic_names_those_that_are_alike(cli: Any) -> None:
    cli("help", "glosary").failed(3, "page not found: glosary", "'glossary'")
    cli("help", "xyzzy").failed(3, "there are", "getting-started")


def test_the_page_is_drawn_on_a_terminal() -> None:
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", 20, 60, 0, 0))
    command = [sys.executable, "-P", "-m", "composefs_async", "help", "glossary"]
    with subprocess.Popen(command, stdout=side, env=os.environ | {"PAGER": "cat", "TERM": "xterm"}) as running:
        os.close(side)
        text = b"".join(read_all(terminal)).decode()
    os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert running.returncode == 0
    assert "Glossary" in plain
    assert "|---" not in plain
    assert max(map(len, plain.splitlines())) <= 60


def read_all(terminal: int) -> Iterator[bytes]:
    """Until nobody has the other side open, which is an error here."""
    with suppress(OSError):
        while piece := os.read(terminal, 1 << 16):
            yield piece


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_reads(shell: str, cli: Any) -> None:
    text = cli("completion", shell).good().text
    assert text == script(shell)
    assert "_COMPOSEFS_ASYNC_COMPLETE" in text


def complete(words: str, tmp_path: Path) -> list[str]:
    """What bash offers behind *words*."""
    (tmp_path / "script").write_text(script("bash"))
    at = len(words.split(" ")) - 1
    lines = f"""
        source {tmp_path}/script
        COMP_WORDS=({words.rstrip()} {"''" if words.endswith(" ") else ""}) COMP_CWORD={at}
        _composefs_async_completion composefs-async
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = os.environ | {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", lines], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not PROGRAM.exists() or not shutil.which("bash"), reason="needs bash and the installed program")
def test_bash_completes_commands_options_and_tags(tmp_path: Path, repo: Path) -> None:
    assert complete("composefs-async oci pu", tmp_path) == ["pull", "push"]
    assert "--dry-run" in complete("composefs-async gc --dr", tmp_path)
    with Repository.open_path(repo) as opened:
        expected = sorted(reference for reference, _ in opened.named_streams("oci"))
    assert expected
    assert complete(f"composefs-async --repo {repo} oci inspect ", tmp_path) == expected


def test_every_command_has_a_manual_page() -> None:
    made = pages(app, "1.2.3")
    names = {f"composefs-async-{path.replace(' ', '-')}.1" for path in COMMANDS} | {"composefs-async.1"}
    assert names <= made.keys()
    for name, text in made.items():
        stem = name.removesuffix(".1")
        assert text.startswith(f'.TH "{stem.upper()}" 1 "" "composefs_async 1.2.3"')
        assert f".SH NAME\n{stem}".replace("-", r"\-") in text
    assert ".SH EXIT STATUS\n" in made["composefs-async.1"]
    assert r"composefs\-async gc \-\-dry\-run" in made["composefs-async-gc.1"]


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_roff_has_no_warnings(tmp_path: Path) -> None:
    for name, text in pages(app, "1").items():
        (tmp_path / name).write_text(text)
    command = ["groff", "-man", "-ww", "-K", "utf8", "-T", "utf8", "-z", *sorted(map(str, tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
