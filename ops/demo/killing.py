"""The second part of the demo: a worker is killed in the middle of an agent's run, and another one continues it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine

from orcheo_dispatch.ops import screen
from orcheo_dispatch.ops.demo.observed import Ended, Execution, Observed, faults, nodes
from orcheo_dispatch.ops.demo.printing import say
from orcheo_dispatch.ops.demo.stack import RESUMING, DemoStack, OurProcess, upload, wait_until_at_work
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.settings.model import Settings

AGENT = Path(__file__).with_name("agent.py")
_ITEMS = ("paper", "ink", "glue")
_STEPS = ("model 1", "look_up paper", "model 2", "look_up ink", "model 3", "look_up glue", "model 4")
_ANSWER = "Together they cost 37 EUR."
_KILLED_IN = "look_up ink"
# Half of what the step takes.
_INTO_STEP_SECONDS = 0.5
_DEADLINE_SECONDS = 60.0
_PAUSE_SECONDS = 0.1


def kill_in_the_middle(stack: DemoStack, engine: Engine, workers: Sequence[OurProcess]) -> bool:
    """Kill the worker that holds an agent's run, and return whether the other one continued the run correctly."""
    say("\n[bold]6[/] an agent's workflow; the worker that holds its run is killed in the middle of a step")
    _say_settings()
    workflow_id = upload(stack.api, AGENT)
    wait_until_at_work(workers)
    found = play(stack, engine, workers, workflow_id)
    for fault in found:
        say(f"  [red]the run did not continue correctly:[/] {escape(fault)}")
    if not found:
        say("  each finished step was executed once, and the step in flight again")
    return not found


def play(stack: DemoStack, engine: Engine, workers: Sequence[OurProcess], workflow_id: str) -> list[str]:
    """Fire the agent's webhook, kill the worker that holds the run, and return what went wrong afterwards."""
    begun_file = stack.folder / "begun"
    run = stack.api.fire_webhook(workflow_id, {"items": list(_ITEMS), "begun": str(begun_file)})
    say(f"  run {run['id']}; seconds since its webhook:")
    scene = _Scene(stack, Observed(engine, run["id"], begun_file))
    scene.watch_until(lambda: scene.has_begun(_KILLED_IN))
    scene.kill(workers)
    scene.watch_until(lambda: scene.status not in {"pending", "running"})
    return scene.conclude()


def _say_settings() -> None:
    """Print the settings under which a run is resumed within seconds, with their defaults."""
    say("  settings of all processes, so that it takes seconds:")
    defaults = {field.alias: field.default for field in Settings.model_fields.values()}
    for name, value in RESUMING.items():
        default = defaults[name]
        shown = f"{default:g} s" if isinstance(default, float) else str(default)
        say(f"    {f'{name}={value}':36}default: {shown}")


class _Scene:
    """One run of the agent, shown step by step."""

    def __init__(self, stack: DemoStack, observed: Observed) -> None:
        self._stack = stack
        self._observed = observed
        self._began = time.monotonic()
        self._killed_pid = 0
        self._in_flight = ""

    def has_begun(self, step: str) -> bool:
        """Return whether a step has begun."""
        return any(execution.step == step for execution in self._observed.executions)

    @property
    def last_step(self) -> str:
        """The step that began last."""
        return self._observed.executions[-1].step if self._observed.executions else ""

    @property
    def status(self) -> str:
        """The status of the run in Orcheo's API."""
        return str(self._record()["status"])

    def watch_until(self, reached: Callable[[], bool]) -> None:
        """Show what happens until `reached`. Raises `DispatchError` after a minute."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                where = f"{self.status}, in step {self.last_step!r}"
                raise DispatchError(f"the agent's run did not continue correctly: {where} for {_DEADLINE_SECONDS:g} s")
            time.sleep(_PAUSE_SECONDS)
            self._show()

    def kill(self, workers: Sequence[OurProcess]) -> None:
        """Kill the worker that holds the run in the middle of its step. Raises `DispatchError` if it is not ours."""
        time.sleep(_INTO_STEP_SECONDS)
        self._show()
        self._killed_pid = self._observed.executions[-1].pid
        holders = [worker for worker in workers if worker.process.pid == self._killed_pid]
        if not holders:
            raise DispatchError(f"the run is held by pid {self._killed_pid}, which is no worker of the demo")
        holders[0].process.kill()
        holders[0].process.wait()
        self._show()
        self._in_flight = self.last_step
        where = f"in the middle of step {_number(self._in_flight)}"
        self._tell(f"[bold red]worker {self._killed_pid} is killed[/] with SIGKILL, {where}")

    def conclude(self) -> list[str]:
        """Show the run as it ended, and return what is wrong with it."""
        self._show()
        record = self._record()
        ended = Ended(
            status=str(record["status"]),
            answer=_answer(record),
            executions=self._observed.executions,
            trace=self._observed.trace,
            killed_pid=self._killed_pid,
            in_flight=self._in_flight,
        )
        say(f"\n  Orcheo's API: {ended.status}, {ended.answer!r}")
        screen.console.print(_table(ended))
        return faults(ended, steps=_STEPS, answer=_ANSWER)

    def _record(self) -> Mapping[str, Any]:
        return self._stack.api.run(self._observed.run_id)

    def _show(self) -> None:
        for event in self._observed.look():
            if isinstance(event, Execution):
                self._tell(f"worker {event.pid} begins step {_number(event.step)}, {event.step}")
            elif "resumed" in event:
                after = event["resumed"]["after_step"]
                self._tell(f"[bold green]the trace has a step 'resumed'[/]: continued after step {after}")

    def _tell(self, line: str) -> None:
        say(f"  {time.monotonic() - self._began:5.1f}  {line}")


def _answer(record: Mapping[str, Any]) -> str:
    """Return the last message of the run's final state, or its error."""
    messages = ((record["output_payload"] or {}).get("final_state") or {}).get("messages")
    return str(messages[-1]["content"] if messages else record["error"])


def _number(step: str) -> int:
    """Return the number of a step, as LangGraph counts; 0 for one that should not be."""
    return _STEPS.index(step) + 1 if step in _STEPS else 0


def _table(ended: Ended) -> Table:
    """Return who executed each step, how often, and which finished steps the trace has."""
    table = Table("", "step", "executed", "by worker", "finished in the trace")
    times = Counter(execution.step for execution in ended.executions)
    finished = nodes(ended.trace)
    for place, (step, count) in enumerate(times.items()):
        pids = [str(execution.pid) for execution in ended.executions if execution.step == step]
        what = finished[place] if place < len(finished) else "-"
        table.add_row(str(_number(step)), step, "once" if count == 1 else f"{count} times", ", ".join(pids), what)
    return table
