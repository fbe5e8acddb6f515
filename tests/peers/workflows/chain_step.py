"""One step of the chain, the same for all systems. Standard library only: it is imported in each environment."""

import asyncio
import json
import os
import time
from pathlib import Path

STEPS = 5
SECONDS = 1.0
# Set where a system must have the time to write to disk while the third step is executed.
THIRD_SECONDS = float(os.environ.get("CHAIN_THIRD_STEP_SECONDS", SECONDS))


async def execute(log: str, step: int) -> None:
    """Note the begin of a step, wait, and note its end."""
    await asyncio.to_thread(_note, log, step, "begin")
    await asyncio.sleep(THIRD_SECONDS if step == 3 else SECONDS)
    await asyncio.to_thread(_note, log, step, "end")


def _note(log: str, step: int, event: str) -> None:
    line = {"run": Path(log).stem, "step": step, "event": event, "at": time.time(), "pid": os.getpid()}
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(line)}\n")
