"""compose.orcheo.yml over the compose file of Orcheo's stack: what the containers are then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from orcheo_dispatch.ops.adoption.env_advice import read_env_file, settings_of
from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.servers.compose import environment_of, merged, read_compose

ROOT = Path(__file__).parents[2]
STACK = ROOT / "tests/stack"
OVERRIDE = ROOT / "ops/container/compose.orcheo.yml"
DOCKERFILE = (ROOT / "ops/container/Dockerfile.stack").read_text(encoding="utf-8")
REPLACED = {"worker": "worker", "celery-beat": "beat"}
OURS = {**REPLACED, "dispatcher": "dispatcher"}


@pytest.fixture(scope="module")
def env_file() -> dict[str, str]:
    """The stack's `.env`."""
    return read_env_file(STACK / "stack.env")


@pytest.fixture(scope="module")
def before(env_file: dict[str, str]) -> dict[str, Any]:
    """The stack's services without the override."""
    services: dict[str, Any] = read_compose(STACK / "docker-compose.yml", env_file)["services"]
    return services


@pytest.fixture(scope="module")
def after(env_file: dict[str, str]) -> dict[str, Any]:
    """The services with it."""
    variables = {**env_file, "ORCHEO_DISPATCH_SOURCE": "/srv/orcheo-dispatch", "ORCHEO_STACK_IMAGE": "stack:0.20.5"}
    services: dict[str, Any] = merged(
        read_compose(STACK / "docker-compose.yml", variables), read_compose(OVERRIDE, variables)
    )["services"]
    return services


def test_no_service_is_lost_and_two_are_new(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert set(after) - set(before) == {"dispatcher", "dispatch-migrate"}
    assert set(before) <= set(after)


@pytest.mark.parametrize("service", REPLACED)
def test_replaced_service_keeps_what_the_stack_gives_it(
    before: dict[str, Any], after: dict[str, Any], service: str
) -> None:
    for key in ("volumes", "env_file"):
        assert after[service][key] == before[service][key]
    assert before[service]["depends_on"].items() <= after[service]["depends_on"].items()
    kept = {
        name for name, value in before[service]["environment"].items() if after[service]["environment"][name] == value
    }
    assert kept == set(before[service]["environment"])
    # The image's entry point prepares the volume and drops root.
    assert "entrypoint" not in after[service]


@pytest.mark.parametrize(("service", "command"), OURS.items())
def test_service_runs_our_command_of_an_image_made_from_the_stacks(
    after: dict[str, Any], service: str, command: str
) -> None:
    told = after[service]
    assert [*told.get("entrypoint", []), *told["command"]] == ["orcheo-dispatch", command]
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert command in group.commands
    assert told["build"]["args"] == {"STACK_IMAGE": "stack:0.20.5"}
    assert told["build"]["dockerfile"] == "ops/container/Dockerfile.stack"
    assert told["image"] == "orcheo-dispatch-stack:latest"
    assert told["healthcheck"]["test"] == ["CMD", "orcheo-dispatch", "health"]
    assert "celery" not in str(told["command"])


@pytest.mark.parametrize("service", OURS)
def test_environment_of_each_service_makes_settings(
    after: dict[str, Any], env_file: dict[str, str], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = environment_of(after[service], env_file)
    for name in [str(field.alias) for field in Settings.model_fields.values()]:
        monkeypatch.delenv(name, raising=False)
    settings = settings_of(environment)
    assert settings.postgres_dsn.get_secret_value().endswith("@postgres:5432/orcheo")
    assert settings.redis_url == settings.slots_redis_url
    assert settings.health_port == 8080
    if service != "worker":
        assert settings.api_url is None


def test_api_leaves_runs_to_the_workers_and_counts_slots_where_they_do(
    after: dict[str, Any], env_file: dict[str, str]
) -> None:
    api = environment_of(after["backend"], env_file)
    assert (api["ORCHEO_INPROCESS_EXECUTION"], api["ORCHEO_INPROCESS_CRON"]) == ("false", "false")
    for service in ("worker", "dispatcher"):
        assert (
            environment_of(after[service], env_file)["ORCHEO_REDIS_URL"] == api["ORCHEO_REDIS_URL"] == api["REDIS_URL"]
        )


def test_image_is_made_from_an_argument_and_keeps_the_entry_point() -> None:
    assert "ARG STACK_IMAGE=" in DOCKERFILE
    assert "\nFROM ${STACK_IMAGE}\n" in DOCKERFILE
    assert "--system-site-packages" in DOCKERFILE
    assert "\nENTRYPOINT" not in DOCKERFILE
    # The entry point drops root by itself, and could not prepare the volume without it.
    assert DOCKERFILE.count("\nUSER ") == 1


def test_everything_copied_into_the_image_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == let_through


def test_missing_folder_of_the_source_is_said(env_file: dict[str, str]) -> None:
    with pytest.raises(KeyError, match="ORCHEO_DISPATCH_SOURCE"):
        read_compose(OVERRIDE, env_file)
