"""Executors for tests: what a run does is in its inputs. Each appends to the file that `TEST_SIDE_EFFECTS` names."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.worker.executor.protocol import Run


async def play(run: Run) -> Mapping[str, Any]:
    """Do what `inputs["do"]` says."""
    _note(run, "begun")
    try:
        result = await _ACTS[run.inputs.get("do", "echo")](run)
    except asyncio.CancelledError:
        _note(run, "cancelled")
        raise
    _note(run, "ended")
    return {"final_state": result}


class Cron:
    """Plays runs, and notes each dispatch of cron triggers; an executor that needs no Orcheo for them."""

    def __init__(self) -> None:
        self._has_played = False

    async def execute(self, run: Run) -> Mapping[str, Any]:
        """Play a run."""
        self._has_played = True
        return await play(run)

    async def dispatch_cron(self) -> CronReport:
        """Note it, in the file that `TEST_CRON` names."""
        # In a process in which no run can hold it up.
        assert not self._has_played
        path = Path(os.environ["TEST_CRON"])
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if (said := os.environ.get("TEST_CRON_FAILS")) is not None:
            raise ValueError(said)
        return CronReport("succeeded", runs=1)


async def _echo(run: Run) -> Any:
    return dict(run.inputs)


async def _pid(run: Run) -> Any:
    return {"pid": os.getpid()}


async def _wait(run: Run) -> Any:
    await asyncio.sleep(float(run.inputs["seconds"]))
    return {}


async def _block(run: Run) -> Any:
    time.sleep(float(run.inputs["seconds"]))
    return {}


async def _swallow(run: Run) -> Any:
    deadline = time.monotonic() + float(run.inputs["seconds"])
    while time.monotonic() < deadline:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            _note(run, "swallowed")
    return {"late": True}


async def _clean_up(run: Run) -> Any:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.2)
        _note(run, "cleaned")


_MEETING = threading.Barrier(20)


async def _meet(run: Run) -> Any:
    """Wait, in a thread, for nineteen others that wait in threads."""
    await asyncio.to_thread(_MEETING.wait, 30)
    return {}


async def _fail(run: Run) -> Any:
    raise ValueError(str(run.inputs.get("text", "it failed")).replace("{nul}", "\x00"))


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def _mute(run: Run) -> Any:
    raise _MuteError


async def _exit(run: Run) -> Any:
    sys.exit(3)


async def _recurse(run: Run) -> Any:
    return await _recurse(run)


async def _return_much(run: Run) -> Any:
    return {"text": "x" * 5_000_000}


async def _hog(run: Run) -> Any:
    """Take every thread of the process, for ever."""
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 3600) for _ in range(200)))


async def _noise(run: Run) -> Any:
    """Say what it was given in every way that Python has."""
    said = str(run.inputs["text"])
    logging.getLogger("a.workflow").error("it is %s", said)
    print(said)
    await asyncio.to_thread(print, said, file=sys.stderr)
    warnings.warn(said, UserWarning, stacklevel=1)
    stray = threading.Thread(target=_raise, args=[said], name="stray")
    stray.start()
    stray.join()
    forgotten = asyncio.create_task(asyncio.to_thread(_raise, said))
    await asyncio.wait([forgotten])
    logging.basicConfig(force=True, level="DEBUG")
    logging.getLogger("a.workflow").error(said)
    return {"said": said}


def _raise(said: str) -> None:
    raise ValueError(said)


async def _return_odd_things(run: Run) -> Any:
    return {"nul": "a\x00b", "lone": "\ud800", "nan": float("nan"), "object": object(), "id": uuid4(), 1: "key"}


async def _home(run: Run) -> Any:
    """Say where a node would keep its files, and who it is."""
    home = Path.home()
    assert os.access(home, os.W_OK)
    return {"home": str(home), "user": getpass.getuser()}


async def _orphan(run: Run) -> Any:
    """Start a program that starts another, which outlives it."""
    program = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.3 & exit 0")
    return {"code": await program.wait()}


_ACTS = {
    "home": _home,
    "orphan": _orphan,
    "echo": _echo,
    "pid": _pid,
    "wait": _wait,
    "block": _block,
    "swallow": _swallow,
    "clean_up": _clean_up,
    "meet": _meet,
    "fail": _fail,
    "mute": _mute,
    "exit": _exit,
    "odd": _return_odd_things,
    "recurse": _recurse,
    "much": _return_much,
    "hog": _hog,
    "noise": _noise,
}


def _note(run: Run, event: str) -> None:
    """Append one line in one write: a file that many processes append to stays whole."""
    path = os.environ.get("TEST_SIDE_EFFECTS")
    if path:
        with Path(path).open("a") as file:
            file.write(f"{run.run_id} {run.fence} {event}\n")
