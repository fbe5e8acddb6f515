"""Represent one runner in the main process: its process, its sockets, its runs."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.worker.books.workflows import KnownVersions
from orcheo_dispatch.worker.execution import Execution
from orcheo_dispatch.worker.frames import Attach, Attached, Frame, Held, NotAttached, Ping, Pong, Up, encode
from orcheo_dispatch.worker.runners.fork_server import Started
from orcheo_dispatch.worker.runners.link import LinkEnd

_SILENT_SECONDS = 1.0
"""Maximum time for an answer (seconds), after which a runner gets no new runs: its event loop may be blocked."""
_LAST_FRAMES_SECONDS = 0.5
"""Time that a runner's socket may stay open after its end (seconds): a child may have inherited it."""
_EXECUTED = 200
_EXIT_TEXTS = {
    76: "Runner ended because its event loop was stopped",
    77: "Runner ended because its connection was closed",
}
_UNKNOWN_STATUS = 255
"""Exit code that multiprocessing reports if the fork server ends before it has reported the status."""


class Runner:
    """The process of a runner, its sockets and its runs. For the thread of the pool's event loop only.

    `on_frame` gets each frame except `Attached`, `NotAttached`, `Held` and answers to earlier pings; `on_gone` is
    called once, last. `join` waits for a process that is about to end.
    """

    def __init__(
        self,
        number: int,
        started: Started,
        *,
        join: Callable[[ForkServerProcess], Awaitable[None]],
        on_frame: Callable[[Runner, Up], None],
        on_gone: Callable[[Runner], None],
        limit: int,
    ) -> None:
        self.number = number
        self.workspace: str | None = None
        """The workspace whose runs it executes; None for a spare."""
        self.dedicated = False
        """Whether it executes one run and then ends."""
        self.executions: dict[int, Execution] = {}
        self.taken = 0
        """Number of runs that it has been given so far."""
        self.started_at = time.monotonic()
        self.assigned_at = self.started_at
        """`time.monotonic()` when it was assigned to its workspace."""
        self.used_at = self.started_at
        """`time.monotonic()` when it was last given a run."""
        self.draining = False
        """Whether it gets no new runs, and ends when it has none."""
        self.ignored: set[int] = set()
        """Keys of runs that are settled while their code is still running."""
        self.cancelled_inside: list[Execution] = []
        self.held = False
        self.held_by: Held | None = None
        self.killed_for: str | None = None
        """Why this process killed it; None if it did not, or gave no reason."""
        self.culprit: Execution | None = None
        """The run because of which it was killed."""
        self.server = 0
        """Process ID of the fork server that forked it."""
        self.base_memory = 0
        """Its memory when its executor was open (bytes); 0 before."""
        self.attached: asyncio.Future[Attached | NotAttached] = asyncio.get_running_loop().create_future()
        self.executed: OrderedDict[str, Run] = OrderedDict()
        """The last run of each workflow version that it was given, for the most recent versions."""
        self.given: OrderedDict[int, Run] = OrderedDict()
        """The most recent runs that it was given, by key."""
        self.versions = KnownVersions()
        """The workflow versions that it was given."""
        self._process = started.process
        self._join = join
        self._joining: asyncio.Task[None] | None = None
        self._on_frame = on_frame
        self._on_gone = on_gone
        self._limit = limit
        self._sockets = (started.link, started.side)
        self._transports: list[asyncio.Transport] = []
        self._open = 1
        self._exited = self._gone = False
        self._ping = 0
        self._pinged_at: float | None = None
        self._pinged_for = 0
        self._answered_for = 0
        self.pid = started.process.pid or 0

    async def connect(self) -> None:
        """Start reading and writing its sockets, and watch for its end."""
        loop = asyncio.get_running_loop()
        for place, sock in enumerate(self._sockets):
            end = LinkEnd(
                limit=self._limit,
                on_frame=self.received,
                on_unreadable=self.unreadable,
                # Only the first socket tells that the runner has ended.
                on_closed=self.closed if place == 0 else _nothing,
            )
            transport, _ = await loop.create_unix_connection(partial(_same, end), sock=sock)
            transport.set_write_buffer_limits(high=1 << 30)
            self._transports.append(transport)
        loop.add_reader(self._process.sentinel, self._note_exit)

    def send(self, frame: Frame) -> None:
        """Send a frame; do nothing if the runner's socket is closed."""
        if not self._transports[0].is_closing():
            self._transports[0].write(encode(frame))

    def assign(self, workspace: str, *, dedicated: bool) -> None:
        """Assign a spare to a workspace permanently."""
        self.workspace, self.dedicated = workspace, dedicated
        self.assigned_at = time.monotonic()

    def attach(self, found: bytes | None) -> None:
        """Have the runner open its executor."""
        self.send(Attach(found))

    @property
    def is_free(self) -> bool:
        """Whether it can be given a run."""
        if self._gone or self._exited or self.draining or self.held or not self.attached.done():
            return False
        return self._pinged_at is None or time.monotonic() - self._pinged_at < _SILENT_SECONDS

    @property
    def is_in_order(self) -> bool:
        """Whether its event loop has answered since its last run ended: nothing that runs left behind blocks it."""
        return not self.executions and self._answered_for == self.taken

    @property
    def was_in_order_before(self) -> bool:
        """Whether it was in order when it was given its last run."""
        return self._answered_for >= self.taken - 1

    def remember(self, key: int, run: Run) -> None:
        """Record that it was given a run."""
        self.given[key] = run
        if len(self.given) > _EXECUTED:
            self.given.popitem(last=False)
        self.executed[run.workflow_version_id] = run
        self.executed.move_to_end(run.workflow_version_id)
        if len(self.executed) > _EXECUTED:
            self.executed.popitem(last=False)

    def ping(self, now: float) -> float:
        """Send a ping unless an answer is outstanding; return how long the answer has been outstanding (seconds)."""
        if self._pinged_at is not None:
            return now - self._pinged_at
        self._ping += 1
        self._pinged_at = now
        self._pinged_for = -1 if self.executions else self.taken
        self.send(Ping(self._ping))
        return 0.0

    def kill(self, why: str | None, *, culprit: Execution | None = None) -> None:
        """Kill the process."""
        if self.killed_for is None:
            self.killed_for, self.culprit = why, culprit
        if not self._exited:
            with suppress(OSError):
                self._process.kill()

    @property
    def exit_kind(self) -> str:
        """How it ended, as a label for metrics."""
        if self.killed_for is not None:
            return "killed"
        return "signal" if (self._process.exitcode or 0) < 0 else "exited"

    def exit_text(self) -> str:
        """Return how it ended, for the error texts of its runs."""
        if self.killed_for is not None:
            return self.killed_for
        code = self._process.exitcode
        if code is None:
            return "Runner ended"
        if code < 0:
            try:
                name = f" ({signal.Signals(-code).name})"
            except ValueError:
                name = ""
            return f"Runner ended by signal {-code}{name}"
        return _EXIT_TEXTS.get(code) or f"Runner exited with status {code}"

    @property
    def lost_its_server(self) -> bool:
        """Whether it ended together with the fork server, whose end ends all its runners."""
        return self.killed_for is None and self._process.exitcode == _UNKNOWN_STATUS and not _is_alive(self.server)

    def received(self, frame: Up) -> None:
        """Accept a frame from the runner."""
        if isinstance(frame, Attached | NotAttached):
            if not self.attached.done():
                self.server = frame.server if isinstance(frame, Attached) else 0
                self.attached.set_result(frame)
        elif isinstance(frame, Pong):
            if frame.number == self._ping:
                self._pinged_at = None
                self._answered_for = max(self._answered_for, self._pinged_for)
                self.held_by = None
                self._on_frame(self, frame)
        elif isinstance(frame, Held):
            self.held_by = frame
        else:
            self._on_frame(self, frame)

    def unreadable(self, reason: str) -> None:
        """Kill a runner that sent bytes that are not a frame: its workflows have written to its socket."""
        self.kill(f"Runner sent an invalid message ({reason})")

    def closed(self) -> None:
        """Note that nothing more will be read."""
        self._open = 0
        if not self._exited:
            # Its event loop is unreachable, whether or not it ends by itself.
            asyncio.get_running_loop().call_later(_LAST_FRAMES_SECONDS, self.kill, None)
        self._end_if_done()

    def _note_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        self._joining = loop.create_task(self._exit())

    async def _exit(self) -> None:
        await self._join(self._process)
        self._exited = True
        asyncio.get_running_loop().call_later(_LAST_FRAMES_SECONDS, self._abort)
        self._end_if_done()

    def _abort(self) -> None:
        for transport in self._transports:
            transport.abort()

    def _end_if_done(self) -> None:
        if self._exited and not self._open and not self._gone:
            self._gone = True
            self._abort()
            if not self.attached.done():
                reason = f"the executor was not opened: {self.exit_text()}"
                self.attached.set_result(NotAttached("DispatchError", reason))
            self._on_gone(self)
            self._process.close()


def _nothing() -> None:
    """Do nothing."""


def _same[T](value: T) -> T:
    return value


def _is_alive(pid: int) -> bool:
    """Return whether a child of this process is alive; a zombie is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
