"""The real Orcheo under the units: its API, and workers that execute its workflows under the hardening."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.real.child import free_port
from ops.real.orcheo_client import OrcheoClient
from ops.real.orcheo_environment import orcheo_environment, process_environment
from tests.databases import Database
from tests.processes import until
from tests.runs import all_are, everything
from tests.systemd.host import API, OURS, Host

_WORKFLOW = Path(__file__).parents[1] / "acceptance" / "workflows" / "greet.py"
_KEY = "ORCHEO_VAULT_ENCRYPTION_KEY"
_FROM_UNITS = ("HOME", "ORCHEO_INPROCESS_EXECUTION", "ORCHEO_INPROCESS_CRON")
_WEBHOOKS = 20


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
    host.comes_back(API, dead, seconds=90)
    host.systemctl("stop", API)
    assert host.show(API, "Result") == "success"
