"""What an installation adds to an environment: one importable name, and all files that the code reads."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.processes.processes import ROOT

_NAME = "orcheo_dispatch"
_READ = {
    "dispatcher/page/assets/page.html",
    "dispatcher/page/assets/page.css",
    "dispatcher/page/assets/page.js",
    "ops/demo/agent.py",
    "ops/demo/greet.py",
    "ops/schemas/status.json",
    "ops/sql/roles.sql",
    "ops/systemd/orcheo-worker@.service",
    "ops/systemd/orcheo.env.example",
    "ops/prometheus/alerts.yml",
    "ops/grafana/orcheo-dispatch.import.json",
    "ops/grafana/orcheo-dispatch.json",
    "ops/grafana/provisioning/dashboards/orcheo.yml",
    "shared/schema/migrations/env.py",
    "shared/schema/migrations/versions/0002_views.sql",
    "py.typed",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build sdist and wheel of what is committed or about to be, without the network; the wheel out of the sdist."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "source"
    source.mkdir()
    listed = _run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).split()
    archive = folder / "source.tar"
    with tarfile.open(archive, "w") as tar:
        for name in listed:
            if (ROOT / name).is_symlink() or (ROOT / name).exists():
                tar.add(ROOT / name, name)
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="tar")
    build = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    sdist = folder / _run(sys.executable, "-c", build, "build_sdist", str(folder), cwd=source).split()[-1]
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    wheel = folder / _run(sys.executable, "-c", build, "build_wheel", str(folder), cwd=unpacked).split()[-1]
    return {"sdist": sdist, "wheel": wheel}


def test_installation_adds_one_name_that_can_be_imported(packages: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "empty").glob("lib/python*/site-packages")
    before = set(site.iterdir())
    install = [sys.executable, "-m", "pip", "--python", str(tmp_path / "empty"), "install", "--no-deps", "--no-index"]
    _run(*install, str(packages["wheel"]), cwd=tmp_path)
    added = {path.name for path in set(site.iterdir()) - before}
    assert {name for name in added if not name.endswith(".dist-info")} == {_NAME}


def test_wheel_holds_every_file_that_the_code_reads(packages: dict[str, Path]) -> None:
    with zipfile.ZipFile(packages["wheel"]) as wheel:
        names = {name.removeprefix(f"{_NAME}/") for name in wheel.namelist() if name.startswith(f"{_NAME}/")}
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("dispatcher", "worker", "shared", "ops")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert (_READ | modules) - names == set()
    assert [name for name in names if name.startswith("tests")] == []


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
