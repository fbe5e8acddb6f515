"""Child processes that end when asked to, and when their parent dies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launcher.py")
# Below Linux's ephemeral ports: a client that retries while its server is down can otherwise be given the
# server's own port as its local one, connect to itself, and keep the server from starting again.
_PORTS = range(18_000, 32_000)
_reservations: list[socket.socket] = []
_LOG_TAIL_BYTES = 8192
_PAUSE_SECONDS = 0.005
# States of /proc: no such process, a zombie, a dead one.
_GONE = frozenset({"", "Z", "X"})


def launch(
    command: Sequence[str],
    *,
    log: Path,
    death_signal: signal.Signals = signal.SIGKILL,
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command`, its output appended to `log`, as `user` (only root may give one).

    On Linux it gets `death_signal` when the thread that called this ends, so call it on a thread that
    outlives the child. It leads a session of its own: a terminal's Ctrl-C reaches only the parent.
    """
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(int(death_signal)), user or "-"]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], *signals: tuple[signal.Signals, float]) -> None:
    """Send each signal in turn and give it its seconds, then SIGKILL; return when the process is gone."""
    for number, patience_seconds in signals:
        process.send_signal(number)
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1 outside the range that the system assigns to clients.

    No process on this machine is given the same one by this function for as long as the caller's lives: a server
    takes seconds until it listens.
    """
    for port in random.sample(_PORTS, k=200):
        reservation = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                # A name in Linux' abstract namespace: it has no file, and ends with the process.
                reservation.bind(f"\0orcheo-dispatch-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        _reservations.append(reservation)
        return port
    raise OSError(f"no free TCP port found from {_PORTS.start} to {_PORTS.stop - 1}")


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last lines of `log` as one, for an error text."""
    if not log.exists():
        return "no output"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-count:] if line.strip()) or "no output"


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that `pid` started and that still live; on Linux only, else none."""
    stats = Path("/proc").glob("[0-9]*/stat")
    return [int(stat.parent.name) for stat in stats if _state_and_parent(stat)[1] == pid]


def kill_all(pids: Sequence[int]) -> None:
    """Kill `pids` and return when they are gone. Zombies count as gone: whose child they are reaps them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(_state_and_parent(Path(f"/proc/{pid}/stat"))[0] not in _GONE for pid in pids):
        time.sleep(_PAUSE_SECONDS)


def _state_and_parent(stat: Path) -> tuple[str, int]:
    try:
        # The second field, the name, may hold blanks and brackets.
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return "", 0
    return state, int(parent)
