"""What runs do in these tests, good and bad, by name: under an executor of its own, `play`, and in a node of Orcheo."""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import gc
import io
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orcheo_dispatch.worker.executor.protocol import Run

_HOLD_SECONDS = 6.0
_FOREVER = 3600.0


type Inputs = Mapping[str, Any]


async def play(run: Run) -> Mapping[str, Any]:
    """Do what `inputs["do"]` says: an executor."""
    return {"final_state": await act(run.inputs)}


async def act(inputs: Inputs) -> Any:
    """Do what `inputs["do"]` says."""
    do = str(inputs.get("do", "echo"))
    found = await ACTS[do](inputs)
    return found if found is not None else {"did": do}


async def _echo(inputs: Inputs) -> Any:
    return dict(inputs)


async def _wait(inputs: Inputs) -> Any:
    await asyncio.sleep(float(inputs["seconds"]))


async def _see(_: Inputs) -> Any:
    """Say what could be somebody else's."""
    return {
        "key": os.environ.get("OPENAI_API_KEY"),
        "cwd": str(Path.cwd()),
        "stdout": type(sys.stdout).__name__,
        "handlers": len(logging.getLogger("of.a.workflow").handlers),
        "module": "module_of_somebody" in sys.modules,
        "builtin": hasattr(builtins, "left_by_somebody"),
        "recursion": sys.getrecursionlimit(),
    }


async def _taint(_: Inputs) -> Any:
    """Leave traces wherever a process has state, and stay."""
    os.environ["OPENAI_API_KEY"] = "of-another-workspace"
    os.chdir("/")
    sys.stdout = io.StringIO()
    logging.getLogger("of.a.workflow").addHandler(logging.StreamHandler())
    sys.modules["module_of_somebody"] = types.ModuleType("module_of_somebody")
    builtins.left_by_somebody = True  # type: ignore[attr-defined]
    sys.setrecursionlimit(777)
    await asyncio.sleep(3)


async def _block(_: Inputs) -> Any:
    time.sleep(_HOLD_SECONDS)


async def _block_later(_: Inputs) -> Any:
    """Block when this run has ended."""
    asyncio.get_running_loop().call_later(0.1, time.sleep, _FOREVER)


async def _block_in_4_s(_: Inputs) -> Any:
    """Block when the event loop has answered many times since this run has ended."""
    asyncio.get_running_loop().call_later(4, time.sleep, _FOREVER)


async def _spin(_: Inputs) -> Any:
    deadline = time.monotonic() + _HOLD_SECONDS
    while time.monotonic() < deadline:
        pass


async def _hold_gil(_: Inputs) -> Any:
    """One call into C that never lets another thread run."""
    deadline = time.monotonic() + _HOLD_SECONDS
    while time.monotonic() < deadline:
        sum(range(100_000_000))


async def _backtrack(_: Inputs) -> Any:
    """A regular expression that takes for ever, also in C."""
    re.match(r"(a+)+$", "a" * 40 + "b")


async def _exit_process(_: Inputs) -> Any:
    os._exit(3)


async def _exit_0(_: Inputs) -> Any:
    os._exit(0)


async def _exit(_: Inputs) -> Any:
    sys.exit(3)


async def _interrupt(_: Inputs) -> Any:
    raise KeyboardInterrupt


async def _abort(_: Inputs) -> Any:
    os.abort()


async def _crash(_: Inputs) -> Any:
    ctypes.string_at(0)


async def _kill(_: Inputs) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


async def _kill_parent(_: Inputs) -> Any:
    """End the process that made this one: all runners go with it."""
    os.kill(os.getppid(), signal.SIGKILL)
    await asyncio.sleep(5)


async def _end_group(_: Inputs) -> Any:
    os.killpg(0, signal.SIGTERM)
    await asyncio.sleep(1)


async def _kill_group(_: Inputs) -> Any:
    os.killpg(0, signal.SIGKILL)


async def _alarm(_: Inputs) -> Any:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    await asyncio.sleep(5)


async def _execute_another_program(_: Inputs) -> Any:
    os.execv("/bin/true", ["true"])


async def _fork_and_go_on(_: Inputs) -> Any:
    """A child that goes on with this process's event loop and sockets, and ends."""
    if os.fork() == 0:
        os._exit(0)


async def _fill_memory(_: Inputs) -> Any:
    kept = []
    for _step in range(60):
        kept.append(bytearray(os.urandom(1 << 20)) * 10)
        await asyncio.sleep(0.1)
    return {"mib": len(kept) * 10}


async def _take_threads(_: Inputs) -> Any:
    await asyncio.gather(*(asyncio.to_thread(time.sleep, _HOLD_SECONDS) for _ in range(300)))


async def _use_thread(_: Inputs) -> Any:
    await asyncio.to_thread(time.sleep, 0.1)


async def _leave_threads(_: Inputs) -> Any:
    for _step in range(50):
        threading.Thread(target=time.sleep, args=[_FOREVER]).start()


async def _close_descriptors(_: Inputs) -> Any:
    os.closerange(3, 50)
    await asyncio.sleep(1)


async def _close_streams(_: Inputs) -> Any:
    for number in range(3):
        os.close(number)


async def _use_up_descriptors(_: Inputs) -> Any:
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    await asyncio.sleep(2)


async def _print(_: Inputs) -> Any:
    for number in range(200_000):
        print("line", number)
        if number % 1000 == 0:
            await asyncio.sleep(0)


async def _write_to_stderr(_: Inputs) -> Any:
    """Past Python's own stream."""
    for _step in range(5_000):
        with suppress(OSError):
            os.write(2, b"")
    os.write(2, b"written past the stream\n")


async def _log(_: Inputs) -> Any:
    for number in range(20_000):
        logging.getLogger("of.a.workflow").error("line %s", number)
        if number % 1000 == 0:
            await asyncio.sleep(0)


async def _swallow(_: Inputs) -> Any:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)


async def _run_a_loop(_: Inputs) -> Any:
    with suppress(RuntimeError):
        asyncio.run(asyncio.sleep(1))
    await asyncio.to_thread(asyncio.run, asyncio.sleep(1))


async def _stop_loop(_: Inputs) -> Any:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(5)


async def _close_loop(_: Inputs) -> Any:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
    with suppress(RuntimeError):
        loop.close()
    await asyncio.sleep(5)


async def _cancel_everybody(_: Inputs) -> Any:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(5)


async def _cancel_itself(_: Inputs) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(5)


async def _break_tasks(_: Inputs) -> Any:
    asyncio.get_running_loop().set_task_factory(lambda *_, **__: None)  # type: ignore[arg-type]
    await asyncio.sleep(5)


async def _break_executor(_: Inputs) -> Any:
    executor: Any = asyncio.get_running_loop()._default_executor  # type: ignore[attr-defined]
    executor.shutdown(wait=False)


async def _stop_the_clock(_: Inputs) -> Any:
    now = time.monotonic()
    time.monotonic = lambda: now
    time.time = lambda: 0.0


async def _break_json(_: Inputs) -> Any:
    json.dumps = _refuse
    json.loads = _refuse


async def _break_builtins(_: Inputs) -> Any:
    builtins.len = _refuse


def _refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken by a workflow")


async def _ignore_signals(_: Inputs) -> Any:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


async def _stop_process(_: Inputs) -> Any:
    """As a debugger would: the process is there, and does nothing."""
    os.kill(os.getpid(), signal.SIGSTOP)


async def _stop_collecting(_: Inputs) -> Any:
    gc.disable()
    sys.setswitchinterval(100)


async def _recurse(inputs: Inputs) -> Any:
    return await _recurse(inputs)


async def _return_much(_: Inputs) -> Any:
    return {"text": "x" * 80_000_000}


async def _return_nested(_: Inputs) -> Any:
    value: Any = "end"
    for _step in range(100_000):
        value = [value]
    return {"value": value}


class _Liar:
    """Raises, whatever is asked of it."""

    __class__ = dict  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


async def _return_liar(_: Inputs) -> Any:
    return {"liar": _Liar()}


class _MuteError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


async def _raise_mute(_: Inputs) -> Any:
    raise _MuteError


async def _raise_much(_: Inputs) -> Any:
    raise ValueError("z" * 60_000)


async def _raise_unstorable(_: Inputs) -> Any:
    raise ValueError("\x00\ud800" * 100)


async def _write_to_sockets(_: Inputs) -> Any:
    """Send nonsense to whatever this process is connected to."""
    for number in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(number)) as other:
                other.send(b"\x00\x00\x00\x05nonsense of a workflow" * 10)
        except OSError:
            continue
    await asyncio.sleep(2)


ACTS: dict[str, Callable[[Inputs], Awaitable[Any]]] = {
    "echo": _echo,
    "wait": _wait,
    "see": _see,
    "taint": _taint,
    "use a thread": _use_thread,
    "block": _block,
    "block later": _block_later,
    "block in 4 s": _block_in_4_s,
    "spin": _spin,
    "hold the GIL": _hold_gil,
    "backtrack": _backtrack,
    "os._exit(3)": _exit_process,
    "os._exit(0)": _exit_0,
    "sys.exit": _exit,
    "KeyboardInterrupt": _interrupt,
    "abort": _abort,
    "segmentation fault": _crash,
    "SIGKILL": _kill,
    "kill the parent": _kill_parent,
    "SIGTERM to its group": _end_group,
    "SIGKILL to its group": _kill_group,
    "SIGALRM": _alarm,
    "SIGSTOP": _stop_process,
    "exec": _execute_another_program,
    "fork": _fork_and_go_on,
    "memory": _fill_memory,
    "threads": _take_threads,
    "threads left": _leave_threads,
    "descriptors closed": _close_descriptors,
    "streams closed": _close_streams,
    "descriptors used up": _use_up_descriptors,
    "200,000 prints": _print,
    "stderr": _write_to_stderr,
    "20,000 log lines": _log,
    "cancellation swallowed": _swallow,
    "asyncio.run": _run_a_loop,
    "loop stopped": _stop_loop,
    "loop closed": _close_loop,
    "all tasks cancelled": _cancel_everybody,
    "cancels itself": _cancel_itself,
    "task factory": _break_tasks,
    "executor shut down": _break_executor,
    "clock stopped": _stop_the_clock,
    "json replaced": _break_json,
    "len replaced": _break_builtins,
    "signals ignored": _ignore_signals,
    "gc off": _stop_collecting,
    "recursion": _recurse,
    "80 MB output": _return_much,
    "nested output": _return_nested,
    "lying output": _return_liar,
    "mute error": _raise_mute,
    "60 KB error": _raise_much,
    "unstorable error": _raise_unstorable,
    "sockets": _write_to_sockets,
}
OFFENDERS = tuple(name for name in ACTS if name not in {"echo", "wait", "see", "taint", "use a thread"})
"""What a run may do to others."""
