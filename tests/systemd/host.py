"""What an operator does on a host with our units: install, start, look, stop."""

from __future__ import annotations

import json
from functools import partial

from orcheo_dispatch.ops.sandbox.child import free_port
from tests.support.database.databases import Database
from tests.support.processes import processes
from tests.systemd.box import COMMAND, PYTHONPATH, Box

BEAT, DISPATCHER, API, TARGET = "orcheo-beat", "orcheo-dispatcher", "orcheo-api", "orcheo-dispatch.target"
WORKERS = ("orcheo-worker@1", "orcheo-worker@2")
OURS = (BEAT, DISPATCHER, *WORKERS)
until = partial(processes.until, seconds=180.0)
"""A start takes a busy machine a minute: it imports everything twice, for the check before it as well."""
UNITS = "/etc/systemd/system"
CONFIG = "/etc/orcheo-dispatch"
_SECRETS = ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL")


class Host:
    """The booted host, with settings in files and secrets in credentials."""

    def __init__(self, box: Box, database: Database, redis_url: str) -> None:
        self.box = box
        self.database = database
        self.secrets = dict(zip(_SECRETS, (database.dsn, redis_url, redis_url), strict=True))
        self.settings = {"PYTHONPATH": PYTHONPATH, "ORCHEO_WORKER_EXECUTOR": "tests.support.runners.executors:play"}
        # Other tests of this machine may be using the ports that the units name.
        self.ports = {name: free_port() for name in (BEAT, DISPATCHER)}
        self._failed = False
        # The journal is that of the boot, and other tests have left lines of the same units in it.
        shown = box.run("journalctl", "--boot", "--lines", "1", "--quiet", "--show-cursor")
        self._start_of_journal = shown.rpartition("-- cursor: ")[2].strip()

    def install(self) -> None:
        """Write units, settings and credentials, as the steps of an installation say."""
        self.command("units", "--write", UNITS, "--force")
        for name, port in self.ports.items():
            self.box.put(f"{CONFIG}/{name.removeprefix('orcheo-')}.env", f"ORCHEO_HEALTH_PORT={port}\n")
        self.configure()

    def configure(self, **settings: str) -> None:
        """Write the settings that are the same for all, with these on top."""
        self.settings.update(settings)
        lines = "".join(f"{name}={value}\n" for name, value in self.settings.items())
        self.box.put(f"{CONFIG}/orcheo.env", lines, 0o640)
        for name, value in self.secrets.items():
            self.box.put(f"{CONFIG}/credentials/{name}", f"{value}\n", 0o600)
        self.systemctl("daemon-reload")

    def drop_in(self, unit: str, *lines: str) -> None:
        """Change a unit as `systemctl edit` does."""
        self.box.put(f"{UNITS}/{unit}.service.d/test.conf", "[Service]\n" + "".join(f"{line}\n" for line in lines))
        self.systemctl("daemon-reload")

    def command(self, *arguments: str, expect: int | None = 0) -> str:
        """Run `orcheo-dispatch` as root, with no settings at all."""
        return self.box.run("env", f"PYTHONPATH={PYTHONPATH}", COMMAND, *arguments, expect=expect)

    def systemctl(self, *arguments: str, expect: int | None = 0) -> str:
        """Run `systemctl`, and show the journal where it fails."""
        try:
            return self.box.run("systemctl", *arguments, expect=expect)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()[-8000:]}") from None

    def start(self, *units: str) -> None:
        """Start units; return when they have said that they are at work."""
        self.systemctl("start", *units)
        for unit in units:
            assert self.show(unit, "ActiveState") == "active", self.journal(unit)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit).strip()

    def pid(self, unit: str) -> int:
        """Return the process id of a unit's main process, inside."""
        return int(self.show(unit, "MainPID"))

    def kill(self, unit: str, signal: str) -> None:
        """Send a signal to a unit's main process alone."""
        self.systemctl("kill", "--signal", signal, "--kill-whom", "main", unit)

    def comes_back(self, unit: str, dead: int) -> None:
        """Wait until a unit is active again, as another process."""
        until(
            lambda: self.show(unit, "ActiveState") == "active" and self.pid(unit) not in (0, dead),
            what=f"{unit} is back\n{self.journal(unit)[-3000:]}",
        )

    def journal(self, unit: str | None = None) -> str:
        """Return what the journal has of this test, or of a unit in it."""
        of_unit = () if unit is None else ("--unit", unit)
        of_test = ("--after-cursor", self._start_of_journal, "--output", "short-precise")
        return self.box.run("journalctl", "--no-pager", *of_test, *of_unit, expect=None)

    def health(self, port: int, *options: str, expect: int | None = 0) -> dict[str, bool]:
        """Ask a process by the command."""
        answer = json.loads(self.command("health", "--port", str(port), "--json", *options, expect=expect))
        return {each["name"]: each["ok"] for each in answer}

    def clean(self) -> None:
        """Stop all, and forget settings and drop-ins."""
        self.systemctl("stop", TARGET, API, *OURS, expect=None)
        self.systemctl("disable", TARGET, API, *OURS, expect=None)
        self.systemctl("reset-failed", expect=None)
        self.box.run("sh", "-c", f"rm -rf {CONFIG} {UNITS}/orcheo-* /var/lib/orcheo", expect=None)
        self.systemctl("daemon-reload")
