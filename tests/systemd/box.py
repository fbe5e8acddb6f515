"""A real systemd, booted as PID 1 of a systemd-nspawn container that shares the network of this host.

The container is a small Debian (or what this host is) made once by debootstrap. The installation inside is this one:
its interpreter, its packages and this source, mounted read-only beneath /opt. What is written there is in memory, and
lives until the box is closed: so it outlives a reboot of the container, as files of a host do.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from orcheo_dispatch.ops.sandbox.child import children_of, end

ROOT = Path(__file__).parents[2]
COMMAND = "/opt/orcheo-dispatch/bin/orcheo-dispatch"
SOURCE = "/opt/source"
PYTHONPATH = f"{SOURCE}:{SOURCE}/src"
_FOLDERS_OF_OURS = ("src", "shared", "dispatcher", "worker", "ops", "tests")
_VENV = "/opt/orcheo-dispatch"
_PYTHON = "/opt/python"
_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_SECONDS = 240.0
"""The boot ends when the units that are enabled have started, which takes a busy machine a while."""
_DOWN_SECONDS = 150.0
_PAUSE_SECONDS = 0.1
# python3 brings the libraries that any Python needs.
_PACKAGES = "systemd,systemd-sysv,dbus,procps,iproute2,ca-certificates,python3"
# What the units import. Inside, nothing can be written beside it, and without bytecode each start compiles all of it.
_IMPORTS = """
import orcheo_backend.app
import orcheo_dispatch.dispatcher.app, orcheo_dispatch.dispatcher.beat
import orcheo_dispatch.ops.cli, orcheo_dispatch.ops.host.api, orcheo_dispatch.ops.host.check
import orcheo_dispatch.worker.app, orcheo_dispatch.worker.orcheo.executor
"""
# nspawn mounts the controllers of cgroups v1 read-only; a unit's limits are written there.
_INIT = """#!/bin/sh
for c in systemd memory pids cpu cpuacct blkio cpuset devices freezer; do
    [ -e /sys/fs/cgroup/$c/tasks ] && mount -o remount,rw,bind /sys/fs/cgroup/$c
done
/sbin/ldconfig
exec /lib/systemd/systemd "$@"
"""


def why_not() -> str:
    """Return why no box can be booted here, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it takes Linux, and root"
    for program, package in (
        ("systemd-nspawn", "systemd-container"),
        ("debootstrap", "debootstrap"),
        ("nsenter", "util-linux"),
    ):
        if not shutil.which(program):
            return f"{program} is missing: apt-get install {package}"
    if Path(sys.base_prefix) == Path("/usr"):
        return "it takes a Python with a folder of its own (uv's, pyenv's, /usr/local): this one is in /usr"
    return ""


class Box:
    """One container. Close it, and nothing is left but the tree that debootstrap made."""

    def __init__(self, folder: Path, name: str = "orcheo-box") -> None:
        self._base, self._state, self._root = folder / "base", folder / "state", folder / "root"
        self._folder, self._name = folder, f"{name}-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._hybrid = not (_CGROUPS / "cgroup.controllers").exists()

    def __enter__(self) -> Self:
        self._make_base()
        self._mount()
        try:
            self._install()
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, *command: str, expect: int | None = 0, seconds: float = 180) -> str:
        """Run a command inside and return what it printed, errors too."""
        done = subprocess.run(
            [
                *("nsenter", "-t", str(self._leader()), "-a", "--root", "--wd", "env", "-i"),
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                *("HOME=/", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "SYSTEMD_URLIFY=0"),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=seconds,
        )
        if expect is not None and done.returncode != expect:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside, owned by root."""
        file = self._root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def up(self) -> None:
        """Boot; return when systemd says that it is done."""
        environment = {**os.environ, **({} if self._hybrid else {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})}
        environment.pop("NOTIFY_SOCKET", None)
        self._make_cgroups()
        venv = Path(sys.prefix)
        with (self._folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    # In cgroups of its own, so that nothing of it is left behind.
                    *("/bin/sh", "-c", f'{self._enter_cgroups()} exec "$@"', "sh", "systemd-nspawn", "--quiet"),
                    *(f"--directory={self._root}", f"--machine={self._name}", "--register=no", "--keep-unit"),
                    *("--console=pipe", "--resolv-conf=copy-host", "--capability=all", "--kill-signal=SIGRTMIN+3"),
                    "--system-call-filter=bpf @keyring perf_event_open",
                    f"--bind-ro={sys.base_prefix}:{_PYTHON}",
                    f"--bind-ro={venv / 'lib'}:{_VENV}/lib",
                    *(f"--bind-ro={ROOT / name}:{SOURCE}/{name}" for name in _FOLDERS_OF_OURS),
                    "/box-init",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + _BOOT_SECONDS
        state = "it did not come up"
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(LookupError):
                state = self.run("systemctl", "is-system-running", expect=None).strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(_PAUSE_SECONDS)
        raise RuntimeError(f"the box is not up: {state}; see {console.name}")

    def down(self) -> None:
        """Power off in order, as `systemctl poweroff` does."""
        if self._process is not None:
            end(self._process, (signal.SIGTERM, _DOWN_SECONDS))
            self._process = None
            self._remove_cgroups()

    def close(self) -> None:
        """Power off, and forget all that was written."""
        self.down()
        for mounted in (self._root, self._state):
            subprocess.run(["umount", "--lazy", str(mounted)], check=False, capture_output=True)

    def _leader(self) -> int:
        """Return the process id, on this host, of the container's PID 1."""
        children = children_of(self._process.pid) if self._process is not None else []
        if not children:
            raise LookupError("the box is not up")
        return children[0]

    def _make_base(self) -> None:
        if self._base.exists():
            return
        partial = self._folder / "base.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
        with (self._folder / "debootstrap.log").open("wb") as log:
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(partial)],
                stdout=log,
                stderr=log,
                check=True,
            )
        # A boot waits for no timer, and each box is another machine.
        for wanted in (partial / "etc/systemd/system/timers.target.wants").glob("*"):
            wanted.unlink()
        (partial / "etc/machine-id").write_text("")
        partial.rename(self._base)

    def _mount(self) -> None:
        for folder in (self._state, self._root):
            folder.mkdir(exist_ok=True)
        _do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self._state))
        upper, work = self._state / "upper", self._state / "work"
        upper.mkdir()
        work.mkdir()
        options = f"lowerdir={self._base},upperdir={upper},workdir={work}"
        _do("mount", "-t", "overlay", "-o", options, "overlay", str(self._root))

    def _install(self) -> None:
        """Make this virtual environment stand at /opt, with the paths of there; its packages are mounted."""
        self.put("/box-init", _INIT, 0o755)
        # An interpreter with a shared library of its own finds it there.
        self.put("/etc/ld.so.conf.d/python.conf", f"{_PYTHON}/lib\n")
        binaries = self._root / _VENV.lstrip("/") / "bin"
        binaries.mkdir(parents=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for name in ("python", "python3", version):
            (binaries / name).symlink_to(f"{_PYTHON}/bin/{version}")
        text = (Path(sys.prefix) / "pyvenv.cfg").read_text()
        self.put(f"{_VENV}/pyvenv.cfg", text.replace(sys.base_prefix, _PYTHON))
        # As pip writes it; the packages of a development install name this source where it is here, not there.
        self.put(
            COMMAND,
            f"#!{_VENV}/bin/python\nimport sys\nfrom orcheo_dispatch.ops.cli import main\nsys.exit(main())\n",
            0o755,
        )
        _do("env", "-u", "PYTHONDONTWRITEBYTECODE", sys.executable, "-c", _IMPORTS)
        for folder in (_PYTHON, f"{_VENV}/lib", *(f"{SOURCE}/{name}" for name in _FOLDERS_OF_OURS)):
            (self._root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _hierarchies(self) -> list[Path]:
        if not self._hybrid:
            return [_CGROUPS / self._name]
        return [folder / self._name for folder in sorted(_CGROUPS.iterdir()) if (folder / "cgroup.procs").exists()]

    def _make_cgroups(self) -> None:
        named = _CGROUPS / "systemd"
        if self._hybrid and not named.is_mount():
            named.mkdir(exist_ok=True)
            _do("mount", "-t", "cgroup", "-o", "none,name=systemd", "cgroup", str(named))
        for folder in self._hierarchies():
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if self._hybrid and (folder / name).exists():
                    (folder / name).write_text((folder.parent / name).read_text())
            if self._hybrid and (folder / "cpuset.cpus").exists():
                (folder / "cgroup.clone_children").write_text("1")

    def _enter_cgroups(self) -> str:
        return " ".join(f"echo $$ > '{folder}/cgroup.procs';" for folder in self._hierarchies())

    def _remove_cgroups(self) -> None:
        for folder in self._hierarchies():
            for procs in folder.rglob("cgroup.procs"):
                for pid in procs.read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        time.sleep(_PAUSE_SECONDS)
        for folder in self._hierarchies():
            for each in sorted(folder.rglob("*/"), reverse=True):
                with suppress(OSError):
                    each.rmdir()
            with suppress(OSError):
                folder.rmdir()


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
