"""The real Orcheo under the units: its API, and workers that execute its workflows under the hardening."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.orcheo_client import OrcheoClient
from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment, process_environment
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, everything
from tests.systemd.box import COMMAND
from tests.systemd.host import API, CONFIG, OURS, Host, until

_WORKFLOW = Path(__file__).parents[1] / "acceptance" / "workflows" / "greet.py"
_KEY = "ORCHEO_VAULT_ENCRYPTION_KEY"
_FROM_UNITS = ("HOME", "ORCHEO_INPROCESS_EXECUTION", "ORCHEO_INPROCESS_CRON")
_WEBHOOKS = 20
PYTHON = Path(COMMAND).with_name("python")
# What Orcheo's own runner does for a code node, without the seconds that it takes to import Orcheo.
_SANDBOX = """
import wasmtime
store = wasmtime.Store()
module = wasmtime.Module(store.engine, '(module (func (export "add") (result i32) i32.const 1 i32.const 2 i32.add))')
print("sandbox:", wasmtime.Instance(store, module, []).exports(store)["add"](store), flush=True)
"""


@pytest.fixture
def orcheo(host: Host) -> Iterator[OrcheoClient]:
    """The API's client; the API is not started yet."""
    variables = orcheo_environment(host.secrets["ORCHEO_POSTGRES_DSN"], host.secrets["REDIS_URL"], Path("/nowhere"))
    host.secrets[_KEY] = variables.pop(_KEY)
    kept = {name: value for name, value in variables.items() if name not in (*host.secrets, *_FROM_UNITS)}
    host.configure(**kept, ORCHEO_WORKER_EXECUTOR="orcheo")
    port = free_port()
    command = "/opt/orcheo-dispatch/bin/orcheo-dispatch api --host 127.0.0.1"
    host.drop_in(API, "ExecStart=", f"ExecStart={command} --port {port}", "WatchdogSec=10")
    client = OrcheoClient(f"http://127.0.0.1:{port}", process_environment({}))
    yield client
    client.close()


@pytest.mark.parametrize("unit", ["orcheo-worker@1", API])
def test_sandbox_of_restricted_mode_runs_under_the_hardening(host: Host, unit: str) -> None:
    """Restricted mode executes code nodes as WebAssembly, which is compiled to memory that can be executed."""
    host.box.put(f"{CONFIG}/sandbox.py", _SANDBOX)
    host.drop_in(
        unit, "Type=oneshot", "Restart=no", "ExecStartPre=", "ExecStart=", f"ExecStart={PYTHON} {CONFIG}/sandbox.py"
    )
    host.systemctl("start", unit, expect=None)
    assert host.show(unit, "Result") == "success", host.journal(unit)[-3000:]
    assert "sandbox: 3" in host.journal(unit)


def test_webhooks_end_in_succeeded_under_the_units(host: Host, orcheo: OrcheoClient, database: Database) -> None:
    host.start(API, *OURS)
    workflow = orcheo.upload(_WORKFLOW, "greet")
    orcheo.configure_webhook(workflow)
    orcheo.fire_webhooks(workflow, [{"name": f"Ada {number}"} for number in range(_WEBHOOKS)])
    until(lambda: all_are(database, "succeeded"), what="the runs succeed")
    assert len(everything(database, "SELECT FROM workflow_runs")) == _WEBHOOKS
    for unit in (API, *OURS):
        environment = host.box.run("cat", f"/proc/{host.pid(unit)}/environ")
        assert not any(secret in environment for secret in host.secrets.values())
    # The API that hangs is back as well.
    dead = host.pid(API)
    host.kill(API, "STOP")
    host.comes_back(API, dead)
    host.systemctl("stop", API)
    assert host.show(API, "Result") == "success"
