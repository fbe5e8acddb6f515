"""What our processes import: each library costs every process memory, and each start of the command time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes.processes import ROOT

_LIGHT = (
    "pydantic",
    "sqlalchemy",
    "psycopg",
    "celery",
    "redis",
    "alembic",
    "rich.console",
    "prometheus_client",
    "loguru",
)
_PRINT = "import sys; print(*sys.modules)"
_OF_A_PROCESS = """
import os, sys
os.environ["ORCHEO_POSTGRES_DSN"] = "postgresql:///none"
os.environ["ORCHEO_DISPATCH_NAMESPACE"] = "test"
from orcheo_dispatch.ops.commands.ready import load_settings
settings = load_settings()
from {module} import {make}
from orcheo_dispatch.shared.broker.installation import find_installation
{make}({arguments})
print(*sys.modules)
"""


def _imported_by(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "orcheo_dispatch.ops.cli",
        "orcheo_dispatch.ops.commands.host",
        "orcheo_dispatch.ops.commands.look",
        "orcheo_dispatch.ops.commands.repair",
        "orcheo_dispatch.ops.commands.run",
    ],
)
def test_command_imports_nothing_heavy_before_it_knows_what_to_do(module: str) -> None:
    assert _imported_by(f"import {module}; {_PRINT}") & set(_LIGHT) == set()


def test_probe_imports_nothing_heavy() -> None:
    """Containers probe every few seconds."""
    asked = (
        "from orcheo_dispatch.ops.host.health import ask_health; ask_health('127.0.0.1', 1, only_live=True, timeout=1)"
    )
    assert _imported_by(f"{asked}; {_PRINT}") & set(_LIGHT) == set()


@pytest.mark.parametrize(
    ("module", "make", "arguments", "without"),
    [
        (
            "orcheo_dispatch.dispatcher.beat",
            "make_beat_app",
            "settings",
            {"sqlalchemy", "alembic", "logfire", "orcheo_dispatch.dispatcher.loop", "rich.console"},
        ),
        (
            "orcheo_dispatch.dispatcher.app",
            "make_dispatcher_app",
            "settings, find_installation(settings)",
            {"alembic", "logfire", "orcheo", "rich.console"},
        ),
    ],
)
def test_process_goes_without_what_it_never_needs(module: str, make: str, arguments: str, without: set[str]) -> None:
    imported = _imported_by(_OF_A_PROCESS.format(module=module, make=make, arguments=arguments))
    assert module in imported
    assert imported & without == set()


@pytest.mark.parametrize(
    ("module", "make", "arguments"),
    [
        ("orcheo_dispatch.dispatcher.beat", "make_beat_app", "settings"),
        ("orcheo_dispatch.dispatcher.app", "make_dispatcher_app", "settings, find_installation(settings)"),
        ("orcheo_dispatch.worker.app", "make_worker_app", "settings, find_installation(settings)"),
    ],
)
def test_process_without_traces_imports_nothing_for_them(module: str, make: str, arguments: str) -> None:
    """redis-py imports OpenTelemetry's metrics where they are installed; nothing else imports any of it."""
    of_redis = _imported_by(f"import redis, redis.asyncio; {_PRINT}")
    imported = _imported_by(_OF_A_PROCESS.format(module=module, make=make, arguments=arguments))
    assert "redis" in imported
    assert {name for name in imported - of_redis if name.startswith("opentelemetry")} == set()
    assert "orcheo_dispatch.shared.traces.export" not in imported


@pytest.mark.parametrize("chosen", ["other", None])
def test_plugins_of_pydantic_stay_where_somebody_chose_them(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", "postgresql:///none")
    monkeypatch.delenv("PYDANTIC_DISABLE_PLUGINS", raising=False)
    if chosen:
        monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", chosen)
    loaded = "import os; from orcheo_dispatch.ops.commands.ready import load_settings; load_settings(); "
    seen = loaded + "{}print(os.environ.get({!r}))"
    assert _imported_by(seen.format("", "PYDANTIC_DISABLE_PLUGINS")) == {chosen or "__all__"}
    inherits = "import orcheo_dispatch.worker.runner.environment; "
    assert _imported_by(seen.format(inherits, "PYDANTIC_DISABLE_PLUGINS")) == {str(chosen)}


def test_newest_revision_is_alembics_head() -> None:
    """It is read off the names of files, so that no process needs Alembic for it."""
    from alembic.script import ScriptDirectory

    from orcheo_dispatch.shared.schema.migrate import _config
    from orcheo_dispatch.shared.schema.revision import newest_revision

    assert newest_revision() == ScriptDirectory.from_config(_config(None)).get_current_head()
