"""One boot of QEMU: its disks, the archive it starts from, and the streams it talks through."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .images import cached_tree_image, python_trees, sparse_file, tree_image
from .options import Options
from .settings import CACHE, FAILED, HERE, TIMED_OUT, HarnessError, note, obstacle

BOOT_LIMIT = 40  # seconds; then it is tried again
GRACE = 60  # seconds for starting and saving, on top of the command's timeout
OUT_SIZE = 16 << 30  # of a sparse file
KERNEL_ARGS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable"
    " rcupdate.rcu_expedited=1 cryptomgr.notests i8042.noaux i8042.nokbd random.trust_cpu=on"
)
# One thread emulates all processors: with a thread for each, QEMU 7.2 hung or crashed the kernel in 1 to 2 of
# 100 boots (lost timers, stale code after self-modification).
ACCELERATOR = "tcg,thread=single"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def prepare() -> None:
    """Run `setup` unless its images are those of the present `setup` and `packages`."""
    if reason := obstacle():
        raise HarnessError(reason)
    inputs = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("setup", "packages"))).hexdigest()
    with contextlib.suppress(FileNotFoundError):
        if (CACHE / "inputs").read_text().strip() == inputs:
            return
    subprocess.run([HERE / "setup"], check=True, stdout=sys.stderr)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A directory of this run, removed at its end, or by a later run if this one is killed."""
    runs = CACHE / "run"
    runs.mkdir(parents=True, exist_ok=True)
    for left in runs.iterdir():
        if not Path("/proc", left.name.partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix=f"{os.getpid()}-") as directory:
        yield Path(directory)


class Machine:
    """What to put into one boot, and the boot.

    *mode* tells the guest what the data disk is: "run" a plain disk, "record" one whose writes are logged,
    "check" one that the command itself mounts.
    """

    def __init__(self, options: Options, work: Path, mode: str = "run") -> None:
        prepare()
        self.options = options
        self.mode = mode
        self.stage = Path(tempfile.mkdtemp(dir=work))
        self.files = self.stage / "vm" / "files"
        self.files.mkdir(parents=True)
        self.modules: list[str] = []
        self._disks: list[tuple[str, Path, bool]] = []  # name, file, read-only
        self._trees: list[tuple[str, str]] = []  # disk, target
        self._end = secrets.token_hex(16)
        self._times = {"began": time.monotonic()}
        self.disk("root", CACHE / "root.erofs", read_only=True)
        self.disk("modules", CACHE / "kernel" / "modules.erofs", read_only=True)
        trees, programs = python_trees(options.python)
        for path, left_out in trees:
            self._tree(cached_tree_image(path, left_out), str(path))
        for source, target in options.copy:
            self._copy(source, target)
        for directory in options.path:
            self._copy(directory.resolve(), str(directory))
        self._path = ":".join(map(str, (*options.path, programs, SYSTEM_PATH)))

    def disk(self, name: str, path: Path, *, read_only: bool = False) -> None:
        """Attach a raw image; the guest finds it as /dev/vm/NAME."""
        self._disks.append((name, path, read_only))

    def scratch(self, name: str, size: int) -> Path:
        """Attach an empty sparse disk."""
        path = self.stage / name
        sparse_file(path, size)
        self.disk(name, path)
        return path

    def _tree(self, image: Path, target: str) -> None:
        name = f"tree{len(self._trees)}"
        self.disk(name, image, read_only=True)
        self._trees.append((name, target))

    def _copy(self, source: Path, target: str) -> None:
        if source.is_dir():
            image = self.stage / f"copy{len(self._trees)}"
            tree_image(image, source)
            self._tree(image, target)
        else:
            directory = self.files / str(len(list(self.files.iterdir())))
            directory.mkdir()
            shutil.copy2(source, directory / "content")
            (directory / "target").write_text(target)

    def run(self, command: list[str]) -> int:
        """Boot, run the command with its output passed through, and return its status."""
        initrd = self._initrd(command)
        out = self.scratch("out", OUT_SIZE) if self.options.out else None
        console = self.stage / "console"
        self._times["boot"] = time.monotonic()
        report: list[str] = []
        late = False
        for tries_left in (2, 1, 0):
            report, late = self._boot(initrd, console)
            if "up" in self._times or not tries_left:
                break
            note("the machine did not come up; trying again")
        return self._finish(report, late, console, out)

    def _initrd(self, command: list[str]) -> Path:
        """The cached initramfs followed by an archive of this run's scripts and settings."""
        vm = self.stage / "vm"
        (vm / "conf").write_text(self._conf())
        by_depth = sorted(self._trees, key=lambda tree: len(Path(tree[1]).parts))
        (vm / "trees").write_text("".join(f"{name} {target}\n" for name, target in by_depth))
        (vm / "command").write_text(self._script(command))
        (vm / "command").chmod(0o755)
        for source in (HERE / "guest" / "main", HERE / "harness" / "replay.py"):
            shutil.copy(source, vm / source.name)
        shutil.copy(HERE / "guest" / "init", self.stage / "init")
        names = ["init", "vm", *(str(path.relative_to(self.stage)) for path in sorted(vm.rglob("*")))]
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"],
            cwd=self.stage,
            check=True,
            input="\n".join(names).encode(),
            stdout=subprocess.PIPE,
        ).stdout
        path = self.stage / "initrd"
        path.write_bytes((CACHE / "kernel" / "initramfs.cpio").read_bytes() + archive)
        return path

    def _conf(self) -> str:
        """Shell variables for the guest's main."""
        conf = {
            "VM_MODE": self.mode,
            "VM_FS": self.options.fs,
            "VM_MOUNT_OPTIONS": self.options.mount_options,
            "VM_TIMEOUT": self.options.timeout,
            "VM_OUT": int(bool(self.options.out)),
            "VM_MODULES": " ".join(self.modules),
            "VM_END": self._end,
        }
        return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in conf.items())

    def _script(self, command: list[str]) -> str:
        env = {"PATH": self._path}
        for item in self.options.env:
            name, given, value = item.partition("=")
            if given or name in os.environ:
                env[name] = value if given else os.environ[name]
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
        cwd = shlex.quote(self.options.cwd)
        enter = f"mkdir -p /out {cwd} && cd {cwd} || exit {FAILED}\n"
        return f"#!/bin/bash\n{exports}{enter}exec {shlex.join(command)}\n"

    def _arguments(self, initrd: Path, console: Path, pipes: list[int]) -> list[str]:
        # The machine ends with the harness also when that is killed.
        args = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64"]
        args += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        args += ["-machine", "q35", "-bios", "qboot.rom", "-cpu", "max", "-accel", ACCELERATOR]
        args += ["-smp", str(self.options.cpus), "-m", str(self.options.mem)]
        args += ["-kernel", str(CACHE / "kernel" / "vmlinux"), "-initrd", str(initrd), "-append", KERNEL_ARGS]
        args += ["-serial", f"file:{_quote(console)}", "-device", "virtio-serial-pci"]
        for number, fd in enumerate(pipes, 1):
            args += ["-chardev", f"file,id=port{number},path=/dev/fd/{fd}"]
            args += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
        for name, path, read_only in self._disks:
            how = "readonly=on" if read_only else "cache=unsafe"
            args += ["-drive", f"if=none,id={name},format=raw,file={_quote(path)},{how}"]
            args += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
        return args

    def _boot(self, initrd: Path, console: Path) -> tuple[list[str], bool]:
        """One attempt: the machine's last words, and whether it had to be stopped."""
        ends = [os.pipe() for _ in range(3)]
        (stdout, _), (stderr, _), (control, _) = ends
        writers = [writer for _, writer in ends]
        qemu = subprocess.Popen(self._arguments(initrd, console, writers), pass_fds=writers, stdin=subprocess.DEVNULL)
        for writer in writers:
            os.close(writer)
        report: list[str] = []
        up = threading.Event()
        end = self._end.encode()
        threads = [
            threading.Thread(target=_pump, args=(stdout, 1, end, qemu), daemon=True),
            threading.Thread(target=_pump, args=(stderr, 2, end, qemu), daemon=True),
            threading.Thread(target=self._control, args=(control, up, report), daemon=True),
        ]
        try:
            for thread in threads:
                thread.start()
            if up.wait(BOOT_LIMIT):
                deadline = time.monotonic() + self.options.timeout + GRACE
                for thread in threads:
                    thread.join(max(0, deadline - time.monotonic()))
            late = any(thread.is_alive() for thread in threads)
        finally:
            qemu.kill()
            qemu.wait()
        self._times["end"] = time.monotonic()
        return report, late

    def _control(self, fd: int, up: threading.Event, report: list[str]) -> None:
        """Follow the control lines: "up" and "start" for the times, "exit" or "fail" last."""
        with open(fd, encoding="utf-8", errors="replace") as f:
            for line in f:
                word, _, rest = line.rstrip("\n").partition(" ")
                self._times.setdefault(word, time.monotonic())
                if word == "up":
                    up.set()
                if word in ("exit", "fail"):
                    report += word, rest
                    break
        up.set()

    def _finish(self, report: list[str], late: bool, console: Path, out: Path | None) -> int:
        log = console.read_text(errors="replace") if console.exists() else ""
        if self.options.console:
            self.options.console.write_text(log)
        if re.search(r"\b(BUG|WARNING|Oops|Call Trace|INFO: task)\b", log):
            note("the kernel complained; see --console FILE")
        if not report or report[0] != "exit":
            return self._failed(report, late, log)
        if out and self.options.out:
            self.options.out.mkdir(parents=True, exist_ok=True)
            subprocess.run(["tar", "-xf", out, "-C", self.options.out], check=True)
        status = int(report[1])
        if status == TIMED_OUT:
            note(f"the command may have been stopped, after {self.options.timeout} s")
        if self.options.verbose:
            self._say_times()
        return status

    def _failed(self, report: list[str], late: bool, log: str) -> int:
        for line in log.splitlines()[-40:]:
            print("console:", line, file=sys.stderr)
        if not late:
            raise HarnessError(" ".join(report[1:]) or "the machine died")
        note(f"stopped, after {self.options.timeout} + {GRACE} s; /out is lost")
        return TIMED_OUT

    def _say_times(self) -> None:
        t = self._times
        note(
            f"images {t['boot'] - t['began']:.1f} s, boot {t['start'] - t['boot']:.1f} s,"
            f" command {t['exit'] - t['start']:.1f} s, total {time.monotonic() - t['began']:.1f} s"
        )


def _quote(path: Path) -> str:
    return str(path).replace(",", ",,")  # as QEMU's option lists want it


def _pump(source: int, target: int, end: bytes, qemu: subprocess.Popen[bytes]) -> None:
    """Pass a stream on as it comes, up to the mark that completes it."""
    held = b""
    while chunk := os.read(source, 1 << 16):
        held += chunk
        complete = held.endswith(end)
        keep = len(end) if complete else _begun(held, end)
        data, held = held[: len(held) - keep], held[len(held) - keep :]
        try:
            while data:
                data = data[os.write(target, data) :]
        except BrokenPipeError:
            qemu.kill()
            return
        if complete:
            return


def _begun(held: bytes, end: bytes) -> int:
    """How many last bytes of *held* could be the start of *end*."""
    return next((n for n in range(min(len(end), len(held)), 0, -1) if end.startswith(held[-n:])), 0)
