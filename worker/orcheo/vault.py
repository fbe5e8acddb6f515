"""Orcheo's vault, created only when a node first resolves a credential, since it opens a connection and threads."""

from __future__ import annotations

import threading
from typing import Any, cast

from orcheo_dispatch.worker.orcheo.compat import BaseCredentialVault, get_vault, without_creation


class LazyVault:
    """A proxy for Orcheo's vault, which is created on first access. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: BaseCredentialVault | None = None

    def as_vault(self) -> BaseCredentialVault:
        """Return itself with the type that Orcheo expects."""
        return cast("BaseCredentialVault", self)

    def close_made(self) -> None:
        """Close the vault if it was created; Orcheo's vault cannot be reopened."""
        with self._lock:
            if self._made is not None:
                cast("Any", self._made).close()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._made is None:
                # The first runner has created the tables; DDL here would wait for transactions that write a credential.
                self._made = without_creation(get_vault())
        return getattr(self._made, name)
