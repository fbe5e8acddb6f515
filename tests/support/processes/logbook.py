"""Every line that our processes wrote in this session, and what must not be in any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_PLACES = {
    "orcheo_dispatch.ops.cli",
    "orcheo_dispatch.dispatcher.app",
    "orcheo_dispatch.dispatcher.beat",
    "orcheo_dispatch.worker.app",
}
_TOKENS = ("ORCHEO_SERVICE_TOKEN", "ORCHEO_VAULT_ENCRYPTION_KEY", "ORCHEO_HEALTH_TOKEN")
_ADDRESSES = ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL")


@dataclass(slots=True)
class Logbook:
    """Keeps the logs of our own processes; Orcheo's API and its stock worker are not ours to keep quiet."""

    logs: list[tuple[str, str]] = field(default_factory=list)
    """The command and all that it wrote, to stdout and to stderr."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Each secret and what it is."""

    def keep(self, command: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
        """Keep what a process wrote, and learn the secrets that it was given."""
        if _PLACES.isdisjoint(command):
            return
        self.logs.append((" ".join(command), log))
        for name in _TOKENS:
            if environment.get(name):
                self.plant(environment[name], name)
        for name in _ADDRESSES:
            if password := urlsplit(environment.get(name, "")).password:
                self.plant(password, f"password of {name}")
                self.plant(unquote(password), f"password of {name}")

    def plant(self, secret: str, what: str) -> None:
        """From now on, and for what was written before: this must not be in any log."""
        self.secrets[secret] = what

    def leaks(self) -> Iterator[str]:
        """Return where a secret is, a line each, without the secret itself."""
        for secret, what in self.secrets.items():
            wanted = re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])")
            for command, log in self.logs:
                for line in log.splitlines():
                    if wanted.search(line):
                        yield f"{what} in the log of {command}: {wanted.sub('<here>', line)}"


LOGBOOK = Logbook()
