"""Our processes with another user id, as process 1, or with other mounts; on Linux, as root."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.support.processes.processes import Process, Stack

_UID = 54_321
# A user namespace: another user id, without an entry in the list of users, that may read what this user may.
NOBODY = f"""
uid, gid = os.getuid(), os.getgid()
os.unshare(os.CLONE_NEWUSER)
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"{_UID} {{uid}} 1")
open("/proc/self/gid_map", "w").write(f"{_UID} {{gid}} 1")
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
"""
"""Lines of Python for `started_after`."""
_BECOME = "os.execv(sys.executable, [sys.executable, '-m', 'orcheo_dispatch.ops.cli', *sys.argv[1:]])"

needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="no namespaces: it takes Linux, root, and util-linux",
)


def started_after(stack: Stack, prelude: str, kind: str, *arguments: str, **variables: str) -> Process:
    """Start the command after some lines of Python that change what it finds."""
    return Process(
        ["-c", f"import os, sys\n{prelude}\n{_BECOME}", kind, *arguments], stack.environment_of(kind, **variables)
    )


def unshared(stack: Stack, kind: str, *how: str, **variables: str) -> Process:
    """Start the command under `unshare`, in the place of what starts it."""
    return unshared_command(stack, kind, ["-m", "orcheo_dispatch.ops.cli", kind], *how, **variables)


def unshared_command(stack: Stack, kind: str, arguments: list[str], *how: str, **variables: str) -> Process:
    """Start Python with these arguments likewise, as a process of this kind."""
    command = ["unshare", *how, sys.executable, *arguments]
    return Process(["-c", f"import os; os.execvp('unshare', {command!r})"], stack.environment_of(kind, **variables))
