"""What processes use: CPU seconds of whole trees, resident memory, and database connections."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

MEGABYTE = 1024 * 1024
_SAMPLE_SECONDS = 0.2

_CONNECTIONS = """
SELECT application_name, count(*) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> 'bench' GROUP BY 1
"""


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the user and system time of these processes and of all their descendants, ended ones included.

    The kernel adds the time of a child that has ended to its parent, once that has waited for it.
    """
    return sum(_cpu_of(process) for process in _trees(pids))


def resident_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of these processes and their descendants now; shared pages count in each."""
    return sum(_status(process, "VmRSS") for process in _trees(pids))


def peak_resident_bytes(pids: Sequence[int]) -> int:
    """Return the most resident memory that each had so far, since its start or since `forget_peaks`."""
    return sum(_status(process, "VmHWM") for process in _trees(pids))


def proportional_bytes(pids: Sequence[int]) -> int:
    """Return the proportional memory (PSS) now: shared pages are divided among those who share them."""
    total = 0
    for process in _trees(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def forget_peaks(pids: Sequence[int]) -> None:
    """Let `peak_resident_bytes` begin anew, at what is resident now."""
    for process in _trees(pids):
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


class Used:
    """What was used between two moments: CPU seconds by group."""

    def __init__(self, groups: Mapping[str, Callable[[], Sequence[int]]]) -> None:
        self._groups = groups
        self._before = {name: cpu_seconds(pids()) for name, pids in groups.items()}
        self.cpu: dict[str, float] = {}

    def stop(self) -> None:
        """Take the time until now; the processes must still run."""
        self.cpu = {name: cpu_seconds(pids()) - self._before[name] for name, pids in self._groups.items()}


class Connections:
    """The most client connections that the database saw at a time, and how they were named then."""

    def __init__(self) -> None:
        self.most = 0
        self.by_name: Counter[str] = Counter()

    def look(self, connection: psycopg.Connection[tuple[str, int]]) -> None:
        """Count now."""
        found = Counter(dict(connection.execute(_CONNECTIONS).fetchall()))
        if found.total() > self.most:
            self.most, self.by_name = found.total(), found


@contextmanager
def connections(dsn: str) -> Iterator[Connections]:
    """Count the server's client connections five times a second, the benchmark's own left out."""
    seen, stopping = Connections(), threading.Event()

    def watch() -> None:
        with psycopg.connect(dsn, application_name="bench", autocommit=True) as connection:
            while not stopping.wait(_SAMPLE_SECONDS):
                seen.look(connection)

    thread = threading.Thread(target=watch, name="connections")
    thread.start()
    try:
        yield seen
    finally:
        stopping.set()
        thread.join()


def until(look: Callable[[], bool], *, seconds: float, what: str, pause: float = 0.05) -> None:
    """Wait until `look` is true. Raises `TimeoutError`, naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds:g} s")
        time.sleep(pause)


def _trees(pids: Sequence[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found += [root, *root.children(recursive=True)]
    return found


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _status(process: psutil.Process, field: str) -> int:
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith(f"{field}:")), "0 0")
    return int(line.split()[1]) * 1024
