"""Services that the runs of a runner share. They are cheap to create and connect when a node first needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.text.redaction import redact
from orcheo_dispatch.worker.books.postgres import Pool
from orcheo_dispatch.worker.orcheo.compat import (
    AsyncPostgresStore,
    BaseCredentialVault,
    JsonPlusSerializer,
    get_settings,
    load_enabled_plugins,
)
from orcheo_dispatch.worker.orcheo.postgres import make_lazy_pool
from orcheo_dispatch.worker.orcheo.saving.either import MakeResumingSaver, MakeSaver
from orcheo_dispatch.worker.orcheo.saving.own_saver import OwnSaver
from orcheo_dispatch.worker.orcheo.saving.resuming import ResumingSaver
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver
from orcheo_dispatch.worker.orcheo.vault import LazyVault
from orcheo_dispatch.worker.orcheo.workflow import Versions


class Found(msgspec.Struct, frozen=True):
    """What the first runner of a worker has found, as JSON for all other runners."""

    saver: Literal["outbox", "langgraph"]
    """Which saver writes the checkpoints of runs."""

    def encode(self) -> bytes:
        """Return the bytes that are passed to other runners."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> Found:
        """Return the object that `encode` encoded."""
        return msgspec.json.decode(encoded, type=cls)


@dataclass(frozen=True, slots=True)
class Services:
    """Services that the runs of a runner share. Nothing belongs to one run; no connection is held during a run."""

    store: AsyncPostgresStore
    vault: BaseCredentialVault
    make_saver: MakeSaver
    make_resuming_saver: MakeResumingSaver | None = None
    """None if LangGraph's own saver writes the checkpoints: runs then start from the beginning."""


@dataclass(frozen=True, slots=True)
class Attached:
    """The services of a runner, and what it closes when it ends."""

    services: Services
    versions: Versions
    pool: Pool
    vault: LazyVault


def prepare() -> str:
    """Load Orcheo's settings and plugins and return the DSN; it connects to nothing and starts no thread.

    The stock worker loads no plugins, so a workflow that imports one fails there and runs in the API.
    Raises `SettingsError` if Orcheo's settings are invalid.
    """
    dsn = postgres_dsn()
    for plugin in load_enabled_plugins().results:
        if not plugin.loaded:
            log.warning("plugin_not_loaded", plugin=plugin.name)
    return dsn


def postgres_dsn() -> str:
    """Return the DSN of Orcheo's settings. Raises `SettingsError` if they are invalid."""
    try:
        return str(get_settings().postgres_dsn or "")
    except ValueError as error:
        raise SettingsError(redact(f"Orcheo's settings: {error}")) from error


def attach(found: Found) -> Attached:
    """Return the services of a runner. Call it on its event loop; it connects to nothing."""
    pool, vault, serde = make_lazy_pool(postgres_dsn()), LazyVault(), JsonPlusSerializer()
    if found.saver == "langgraph":
        make_saver: MakeSaver = lambda run_id, _: OwnSaver(pool, run_id, serde)  # noqa: E731 - typed
    else:
        make_saver = lambda run_id, outbox: RunSaver(pool, outbox, run_id, serde)  # noqa: E731
    make_resuming: MakeResumingSaver = lambda run_id, outbox, heads, graph: ResumingSaver(  # noqa: E731
        pool, outbox, run_id, serde, heads=heads, graph=graph
    )
    services = Services(
        AsyncPostgresStore(pool), vault.as_vault(), make_saver, make_resuming if found.saver == "outbox" else None
    )
    return Attached(services, Versions(pool), pool, vault)
