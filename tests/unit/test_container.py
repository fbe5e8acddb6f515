"""The container image and the compose file, read as text: no engine is needed, and none of this says that they run."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.shared.settings.model import Settings, variables
from orcheo_dispatch.worker.runner.threads import MOST_THREADS

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "ops/container"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("beat", "dispatcher", "worker")
_SECRET_WORDS = re.compile(r"://[^/\s]*:[^/\s]*@|PASSWORD\s*[=:]\s*[^/\s{]|TOKEN\s*[=:]|_KEY\s*[=:]")
_UNITS = {"s": 1, "m": 60}


@pytest.fixture(scope="module")
def orcheos() -> str:
    """Return the sources of Orcheo's packages, in which its variables stand by name, with or without their prefix."""
    texts = []
    for package in ("orcheo", "orcheo_backend"):
        found = importlib.util.find_spec(package)
        assert found is not None, f"{package} is not installed: pip install 'orcheo-dispatch[orcheo]'"
        assert found.submodule_search_locations is not None
        folder = Path(found.submodule_search_locations[0])
        texts += [path.read_text(encoding="utf-8") for path in folder.rglob("*.py")]
    return "\n".join(texts)


def test_every_variable_is_a_setting_or_orcheos_own(orcheos: str) -> None:
    used = set(re.findall(r"\b(?:ORCHEO_|REDIS_)[A-Z_]+\b", DOCKERFILE + (CONTAINER / "compose.yaml").read_text()))
    used -= {"ORCHEO_DISPATCH_TAG"}  # compose's own: the tag of the image
    unknown = {
        name
        for name in used - set(variables())
        if not re.search(rf'"(?:ORCHEO_)?{name.removeprefix("ORCHEO_")}"', orcheos)
    }
    assert unknown == set()


@pytest.mark.parametrize("service", OURS)
def test_settings_of_each_service_are_taken(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", "postgresql:///orcheo")
    for name, value in {**_image_environment(), **SERVICES[service]["environment"]}.items():
        if name in variables():
            monkeypatch.setenv(name, value)
    assert Settings.load().health_port == 8080


@pytest.mark.parametrize("service", OURS)
def test_each_service_runs_a_command_that_exists(service: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    (command,) = SERVICES[service]["command"]
    assert command == service
    assert command in group.commands
    assert 'ENTRYPOINT ["orcheo-dispatch"]' in DOCKERFILE


@pytest.mark.parametrize("service", ["beat", "dispatcher", "worker", "migrate", "api"])
def test_containers_of_our_image_have_no_privilege_and_write_to_tmp_alone(service: str) -> None:
    told = SERVICES[service]
    assert told["read_only"] is True
    assert told["tmpfs"] == ["/tmp"]
    assert told["cap_drop"] == ["ALL"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in told


def test_image_does_not_run_as_root_and_is_stopped_by_sigterm() -> None:
    lines = DOCKERFILE.splitlines()
    assert lines.index("USER 10001:10001") > max(number for number, line in enumerate(lines) if line.startswith("FROM"))
    assert "STOPSIGNAL SIGTERM" in lines
    assert re.search(r'^HEALTHCHECK .* CMD \["orcheo-dispatch", "health"\]$', DOCKERFILE, re.MULTILINE)


def test_no_secret_stands_in_image_or_compose_file() -> None:
    for text in (DOCKERFILE, *map(str, _values(COMPOSE["services"]))):
        assert not _SECRET_WORDS.search(text), text
    for name, told in COMPOSE["secrets"].items():
        assert told == {"file": f"secrets/{name}"}
    assert set(_secrets_used()) == set(COMPOSE["secrets"])


def test_secrets_and_settings_of_a_host_stay_out_of_the_image_and_of_git() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {"ops/container/secrets", "ops/container/*.env"} <= set(ignored)
    assert {"/ops/container/secrets/", "/ops/container/*.env"} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_everything_copied_into_the_image_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        copied |= set(sources.split())
    assert copied == let_through
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_worker_is_stopped_well_after_its_drain() -> None:
    environment = SERVICES["worker"]["environment"]
    drain = float(environment["ORCHEO_WORKER_DRAIN_TIMEOUT"])
    grace = float(Settings.model_fields["cancel_grace"].default)
    assert _seconds(SERVICES["worker"]["stop_grace_period"]) >= drain + grace + 30


def test_worker_is_one_with_room_for_the_threads_of_its_runners() -> None:
    worker = SERVICES["worker"]
    assert "replicas" not in worker.get("deploy", {})
    defaults = Settings.model_fields
    assert worker["pids_limit"] >= defaults["max_processes"].default * MOST_THREADS


def test_redis_evicts_nothing_and_keeps_what_it_holds() -> None:
    command = SERVICES["redis"]["command"]
    assert command[:2] == ["redis-server", "/run/secrets/redis.conf"]
    told = dict(zip(command[2::2], command[3::2], strict=True))
    assert told["--maxmemory-policy"] == "noeviction"
    assert told["--appendonly"] == "yes"


def test_nothing_but_the_api_is_open_to_the_host() -> None:
    assert [name for name, told in SERVICES.items() if "ports" in told] == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["api"]["ports"])


def test_processes_start_after_the_schema_is_made() -> None:
    for service in OURS:
        assert SERVICES[service]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for name, told in SERVICES.items():
        for other, how in told.get("depends_on", {}).items():
            assert other in SERVICES, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"


def _image_environment() -> dict[str, str]:
    (block,) = re.findall(r"^ENV PATH=(?:.*\\\n)*.*$", DOCKERFILE, re.MULTILINE)
    pairs = block.removeprefix("ENV ").replace("\\\n", " ").split()
    return dict(pair.split("=", 1) for pair in pairs if not pair.startswith(("PATH=", "CREDENTIALS_DIRECTORY=")))


def _secrets_used() -> Iterator[str]:
    for told in SERVICES.values():
        yield from told.get("secrets", [])


def _values(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "environment":
                yield from (f"{key}={text}" for key, text in value.items())
            else:
                yield from _values(value)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value)
    else:
        yield node


def _seconds(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1]]
