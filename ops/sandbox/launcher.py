"""Become another program that dies with its parent: `python launcher.py PARENT SIGNAL USER COMMAND...`.

A script of its own, run by path and on the standard library alone: what `subprocess` offers for this,
`preexec_fn`, is unsafe (and since Python 3.12 warns) in a parent that has threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_SAME_USER = "-"


def main(parent: int, death_signal: int, user: str, command: list[str]) -> None:
    """Take on `user`, ask for `death_signal` when `parent` dies, and become `command`."""
    if user != _SAME_USER:
        _become(user)
    # After the change of user, which clears the request.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit("the parent died before its child began")
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


def _become(user: str) -> None:
    import pwd

    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ["HOME"] = "/"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
