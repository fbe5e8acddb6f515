"""What the demo says to do: while everything is up, and at its end."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import webbrowser
from collections.abc import Mapping, Sequence

from orcheo_dispatch.ops.demo.stack import DemoStack, OurProcess
from orcheo_dispatch.ops.help.command_line import typed
from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.orcheo_environment import VAULT_KEY
from orcheo_dispatch.ops.setup.env_file import write_private
from orcheo_dispatch.ops.setup.env_text import file_text
from orcheo_dispatch.shared.ledger.model import ProcessKind

ENVIRONMENT = "demo.env"
_VARIABLES = ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL", "ORCHEO_API_URL")
_HEAD = "Settings of the demo that runs now, for a shell: set -a; . FILE; set +a"


def open_browser(url: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Open a page in the browser of the person who looks on, and return whether there was one.

    Only with a display and a terminal, and never in CI: nobody would see it, and a browser in a terminal would take it.
    """
    display = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    if not display or environment.get("CI") or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return webbrowser.open(url)


def status_page(processes: Sequence[OurProcess]) -> str:
    """Return the address of the dispatcher's status page."""
    return f"{_of(ProcessKind.DISPATCHER, processes).address}/"


def kept_text(stack: DemoStack, processes: Sequence[OurProcess], workflow_id: str) -> str:
    """Write the file of settings, and return the addresses of what stays up and the commands to try."""
    file = stack.folder / ENVIRONMENT
    variables = {**{name: stack.variables[name] for name in _VARIABLES}, "ORCHEO_VAULT_ENCRYPTION_KEY": VAULT_KEY}
    write_private(file, file_text(_HEAD, variables), replace=True)
    command = typed()
    dispatcher = _of(ProcessKind.DISPATCHER, processes).address
    # The first worker was killed: the last one continued its run.
    worker = _of(ProcessKind.WORKER, processes).address
    webhook = f"{stack.api.url}/api/workflows/{workflow_id}/triggers/webhook"
    addresses = {
        "Orcheo's API": f"{stack.api.url}/api/system/health",
        "status page": status_page(processes),
        "health": f"{dispatcher}/readyz",
        "health of a worker": f"{worker}/readyz",
        "metrics": f"{dispatcher}/metrics",
        "metrics of a worker": f"{worker}/metrics",
    }
    commands = [
        f"set -a; . {shlex.quote(str(file))}; set +a",
        f"{command} status",
        f"{command} runs",
        f"{command} check",
        f"{command} health --url {dispatcher}",
        f"""curl -sS -X POST {webhook} -H 'Content-Type: application/json' -d '{{"name": "you"}}'""",
        f"{typed('orcheo')} --human workflow show {workflow_id}",
    ]
    return "\n".join(
        [
            "Everything stays up until you press Ctrl-C here.",
            *(f"  {what:20}{url}" for what, url in addresses.items()),
            f"  {'logs':20}{stack.folder}/*.log",
            "In another shell, the first line first:",
            *(f"  $ {line}" for line in commands),
            "A second dispatcher, whose status page lets you pause, limit and requeue, after the first line above:",
            f"  $ {_acting(command)}",
            f"To stop: Ctrl-C here, or kill -INT {os.getpid()}; nothing is left.",
        ]
    )


def end_text() -> str:
    """Return what to do after the demo."""
    command = typed()
    steps = {
        f"{command} demo --keep": "the same, and everything stays up for you to try",
        f"{command} init": "the settings for your own Orcheo: asks, checks, writes",
        f"{command} man | man -l -": "all commands, with examples",
        f"{command} --install-completion": "completion at a tab, in bash, zsh and fish",
    }
    width = max(map(len, steps))
    return "\n".join(["next:", *(f"  $ {step:{width}}  # {what}" for step, what in steps.items())])


def _acting(command: str) -> str:
    """Return the line that starts a dispatcher with page actions, with a new token, on a port that is free now."""
    variables = f"ORCHEO_PAGE_ACTIONS=true ORCHEO_HEALTH_TOKEN={secrets.token_hex(16)} ORCHEO_HEALTH_PORT={free_port()}"
    return f"{variables} {command} dispatcher"


def _of(kind: ProcessKind, processes: Sequence[OurProcess]) -> OurProcess:
    """Return the process of a kind that was started last and is alive."""
    return next(each for each in reversed(processes) if each.kind is kind and each.process.poll() is None)
