"""Orcheo's vault, created when a node first resolves a credential: it opens a connection and threads at once."""

from __future__ import annotations

import threading
from typing import Any, cast

from orcheo_dispatch.worker.orcheo.compat import BaseCredentialVault, get_vault, without_creation


class LazyVault:
    """What has the attributes of Orcheo's vault, which the first access makes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: BaseCredentialVault | None = None

    def as_vault(self) -> BaseCredentialVault:
        """Return itself, as what Orcheo takes it for."""
        return cast("BaseCredentialVault", self)

    def close_made(self) -> None:
        """Close the vault if it was made; Orcheo's cannot be opened again."""
        with self._lock:
            if self._made is not None:
                cast("Any", self._made).close()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._made is None:
                # The first runner has created its tables. Its DDL would wait for transactions that write a credential.
                self._made = without_creation(get_vault())
        return getattr(self._made, name)
