"""`orcheo-dispatch demo`: the main job on the real Orcheo, from nothing, leaving nothing behind."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine, text

from orcheo_dispatch.ops import screen
from orcheo_dispatch.ops.demo.killing import kill_in_the_middle
from orcheo_dispatch.ops.demo.next_steps import end_text, kept_text, open_browser, status_page
from orcheo_dispatch.ops.demo.printing import say
from orcheo_dispatch.ops.demo.stack import (
    DemoStack,
    OurProcess,
    demo_variables,
    our_processes,
    second_worker,
    servers,
    upload,
    wait_until_at_work,
)
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.broker.app import HINT_QUEUE, connect
from orcheo_dispatch.shared.broker.installation import Installation, find_installation
from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.ledger import status as queries
from orcheo_dispatch.shared.schema.migrate import migrate
from orcheo_dispatch.shared.settings.model import Settings

WORKFLOW = Path(__file__).with_name("greet.py")
_NAMES = ("Ada", "Grace", "Edsger", "Barbara", "Leslie", "Tony", "Radia", "Donald")
_MAX_RUNS_OF_WORKSPACE = 1_000_000
_DEADLINE_SECONDS = 300.0
_EMPTY_SECONDS = 10.0
_PAUSE_SECONDS = 0.1

_TERMINAL = text("""
SELECT count(*) FILTER (WHERE status NOT IN ('pending', 'running')) AS ended, count(*) AS total FROM workflow_runs
""")


def run_demo(*, webhooks: int, cli_runs: int, keep: bool, browser: bool = False) -> int:
    """Run everything for real and return the exit code: 0 where every run succeeded and nothing was left over."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        say("[bold]1[/] Postgres and Redis, in a scratch folder")
        with servers() as (folder, dsn, redis_url):
            say(f"  {folder}")
            say("[bold]2[/] Orcheo's own API, and our schema beside its tables")
            with OrcheoApi(dsn, redis_url, folder / "orcheo") as api:
                api.limit_runs(_MAX_RUNS_OF_WORKSPACE)
                variables = demo_variables(api)
                settings = Settings.load(
                    postgres_dsn=dsn, redis_url=redis_url, slots_redis_url=redis_url, api_url=api.url
                )
                migrate(settings)
                stack = DemoStack(folder, variables, settings, api, redis_url)
                with our_processes(folder, variables) as processes, _engine(settings) as engine:
                    say("[bold]3[/] beat, dispatcher and worker; meanwhile a workflow, by 'orcheo workflow upload'")
                    workflow_id = upload(api, WORKFLOW)
                    wait_until_at_work(processes)
                    _show_status_page(processes, browser=browser)
                    _play(stack, engine, workflow_id, webhooks, cli_runs)
                    with second_worker(stack) as second:
                        runs = _show(stack, engine, workflow_id)
                        continued = kill_in_the_middle(stack, engine, [processes[-1], second])
                        empty = _nothing_left_over(stack)
                        if keep:
                            _keep(stack, [*processes, second], workflow_id)
                        say("[bold]7[/] stopping everything")
    except KeyboardInterrupt:
        say("\ninterrupted; everything is stopped")
        return 130
    if runs != Counter(succeeded=webhooks + cli_runs) or not continued or not empty:
        say("[red]not every run succeeded, a run did not continue as it should, or something was left over[/]")
        return 1
    say("[green]done[/]: every run succeeded, one of them after its worker was killed; nothing is left running")
    print(f"\n{end_text()}")
    return 0


@contextmanager
def _engine(settings: Settings) -> Iterator[Engine]:
    """Yield the demo's own connection."""
    engine = make_engine(settings, role="demo", connections=1)
    try:
        yield engine
    finally:
        engine.dispose()


def _show_status_page(processes: Sequence[OurProcess], *, browser: bool) -> None:
    """Print where the status page is, and open it if there is a browser to open it in."""
    url = status_page(processes)
    say(f"  status page, with live runs: [bold]{url}[/]")
    if browser and open_browser(url):
        say("  opened in your browser; --no-browser leaves that out")


def _play(stack: DemoStack, engine: Engine, workflow_id: str, webhooks: int, cli_runs: int) -> None:
    """Fire webhooks, create runs as a client does, and watch until all have ended."""
    say(f"[bold]4[/] {webhooks} webhooks, and {cli_runs} runs as a client makes them (stock Orcheo executes none)")
    began = time.monotonic()
    stack.api.fire_webhooks(workflow_id, [{"name": _NAMES[n % len(_NAMES)]} for n in range(webhooks)])
    for n in range(cli_runs):
        stack.api.create_run(workflow_id, {"body": {"name": _NAMES[n % len(_NAMES)]}})
    fired = time.monotonic()
    _watch(engine, webhooks + cli_runs)
    ended = time.monotonic()
    say(f"  fired in {fired - began:.1f} s; all terminal {ended - fired:.1f} s after the last one\n")


def _show(stack: DemoStack, engine: Engine, workflow_id: str) -> Counter[str]:
    """Print what commands say about the runs, and return the number of runs by status."""
    say("[bold]5[/] what 'orcheo workflow show' says; meanwhile a second worker starts")
    print(stack.api.show(workflow_id))
    say("and 'orcheo-dispatch status'")
    status = queries.read_status(engine)
    screen.console.print(screen.status_view(status))
    return Counter(status.runs)


def _nothing_left_over(stack: DemoStack) -> bool:
    """Return whether queues and run slots are empty; a slot is returned shortly after its run has ended."""
    installation = find_installation(stack.settings)
    deadline = time.monotonic() + _EMPTY_SECONDS
    while any((left := _left_over(stack.redis_url, installation)).values()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    say(f"\nleft over: queue celery {left[HINT_QUEUE]}, queue of runs {left['runs']}, run slots {left['slots']}\n")
    return not any(left.values())


def _watch(engine: Engine, total: int) -> None:
    """Show a progress bar until every run is terminal, for five minutes at most."""
    columns = (TextColumn("  terminal"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    deadline = time.monotonic() + _DEADLINE_SECONDS
    with Progress(*columns, console=screen.console) as progress:
        task = progress.add_task("runs", total=total)
        while time.monotonic() < deadline:
            with transaction(engine) as connection:
                row = connection.execute(_TERMINAL).one()
            progress.update(task, completed=row.ended)
            if row.ended >= total:
                return
            time.sleep(_PAUSE_SECONDS)


def _left_over(redis_url: str, installation: Installation) -> dict[str, int]:
    """Return what should be empty after all runs have ended."""
    with connect(redis_url) as client:
        found: Any = client.keys("orcheo:workspace:runs:*")
        taken: Any = client.mget(found) if found else []
        hints: Any = client.llen(HINT_QUEUE)
        runs: Any = client.llen(installation.runs)
    return {HINT_QUEUE: int(hints), "runs": int(runs), "slots": sum(int(value) for value in taken if value)}


def _keep(stack: DemoStack, processes: Sequence[OurProcess], workflow_id: str) -> None:
    """Leave everything up until Ctrl-C, and say how to use it."""
    print(kept_text(stack, processes, workflow_id), flush=True)
    while True:
        time.sleep(3600)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
