"""Provide what a container or a shell may lack.

That is: standard streams that are open and accept any text, a home folder, a user name, and file descriptors.
"""

from __future__ import annotations

import getpass
import io
import os
import pwd
import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_STREAMS = ("stdin", "stdout", "stderr")
_MOST_FILES = 65_536
_FILES_OF_A_PROCESS = 256
_FILES_PER_RUN = 4
_HOME, _USER = "HOME", "LOGNAME"


def settle_in() -> None:
    """Provide what is missing. Call it before opening files, and before importing code that needs a home folder."""
    _open_closed_streams()
    _print_any_text()
    sys.argv = [_readable(each) for each in sys.argv]
    if not _has_home():
        os.environ[_HOME] = _makeshift_home()
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ[_USER] = f"uid-{os.getuid()}"


def raise_file_limit(runs: int = 0) -> None:
    """Raise the soft limit of open files to the hard limit, up to 65,536; log if it is too low for the concurrent runs.

    Also log that a temporary home folder is used: what Orcheo keeps there, such as plugins, may not survive a restart.
    """
    # Imported here, since each start of the command imports this module.
    from orcheo_dispatch.shared.logs.lines import log

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    needed = _FILES_OF_A_PROCESS + _FILES_PER_RUN * runs
    if soft != resource.RLIM_INFINITY and soft < needed:
        log.warning("file_descriptors_low", limit=soft, recommended=needed)
    if os.environ.get(_HOME) == str(_makeshift_path()):
        log.warning("home_replaced", home=os.environ[_HOME])


def _readable(argument: str) -> str:
    """Decode an argument as UTF-8 if the locale could not: it contains surrogates, which databases reject."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "replace")
    return argument


def _open_closed_streams() -> None:
    """Open the null device in place of closed standard streams: otherwise a socket could get their numbers."""
    for number, name in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def _print_any_text() -> None:
    """Make stdout and stderr escape characters that their encoding cannot express, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _has_home() -> bool:
    """Return whether a home folder exists; `/`, which engines set for users without an entry, must be writable."""
    home = os.environ.get(_HOME)
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return False
    return Path(home).is_dir() and (home != "/" or os.access(home, os.W_OK))


def _makeshift_path() -> Path:
    return Path(tempfile.gettempdir()) / f"orcheo-dispatch-home-{os.getuid()}"


def _makeshift_home() -> str:
    """Create a folder that no other user may access and return its path; `/` if none can be created."""
    try:
        path = _makeshift_path()
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if path.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return tempfile.mkdtemp(prefix=f"{path.name}-")
    except OSError:
        return "/"
    return str(path)
