"""All names of Orcheo and LangGraph that a worker uses, and a check that the installed releases have them.

Orcheo guarantees neither these names nor their signatures, so each is checked at start. A missing one is a one-line
error with the release, the name and the remedy. Other modules import these names from here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.worker.orcheo.releases import REMEDY, installed, owner


def _unimportable(error: Exception) -> Exception:
    """Return what to raise for a failed import: the error itself if a distribution is not installed."""
    ours = error.__traceback__ is not None and error.__traceback__.tb_next is None
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return error
    releases = ", ".join(str(release) for release in installed())
    if not isinstance(error, ImportError):
        return SettingsError(f"Orcheo cannot be imported: {type(error).__name__} ({releases}): {REMEDY}")
    if not ours:
        return SettingsError(f"Orcheo cannot be imported: {error} ({releases}): {REMEDY}")
    name = f"{error.name}.{error.name_from}" if error.name_from else str(error.name)
    return SettingsError(f"{owner(str(error.name))} has no {name}, which a worker needs: {REMEDY}")


try:
    import langgraph.checkpoint.base as _base
    import langgraph.checkpoint.serde.types as _serde_types
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        get_checkpoint_id,
    )
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from langgraph.checkpoint.serde.base import SerializerProtocol
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.config import get_config
    from langgraph.graph import StateGraph
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.store.postgres.aio import AsyncPostgresStore
    from langgraph.types import Command
    from langsmith import tracing_context
    from orcheo.config import get_settings
    from orcheo.graph.builder import build_graph
    from orcheo.graph.ingestion import LANGGRAPH_SCRIPT_FORMAT, load_graph_from_script
    from orcheo.models import CredentialAccessContext, WorkflowVersion
    from orcheo.nodes.base import BaseRunnable
    from orcheo.nodes.browser import close_browser_sessions_for_scope
    from orcheo.plugins import load_enabled_plugins
    from orcheo.runtime.credentials import CredentialResolver, credential_resolution
    from orcheo.runtime.runnable_config import RunnableConfigModel, merge_runnable_configs
    from orcheo.runtime.state_builder import build_initial_state
    from orcheo.tracing import encode_step_namespace, split_subgraph_update
    from orcheo.triggers.cron import CronTriggerConfig, CronTriggerState
    from orcheo.vault import BaseCredentialVault
    from orcheo.vault.oauth import CredentialHealthError
    from orcheo_backend.app.dependencies import get_vault
    from orcheo_backend.app.errors import WorkspaceQuotaExceededError
    from orcheo_backend.app.history import RunHistoryStore
    from orcheo_backend.app.history.serialization import normalize_json_mapping
    from orcheo_backend.app.providers import create_repository, create_vault, ensure_credential_service
    from orcheo_backend.app.repository import WorkflowNotFoundError, WorkflowVersionNotFoundError
    from orcheo_backend.app.repository_postgres import PostgresWorkflowRepository

    _resolve_in_state: Callable[..., tuple[Any, bool]] = BaseRunnable._resolve_state_template_path  # noqa: SLF001
except Exception as _error:
    raise _unimportable(_error) from _error

__all__ = [
    "AsyncPostgresSaver",
    "AsyncPostgresStore",
    "BaseCredentialVault",
    "ChannelVersions",
    "Checkpoint",
    "CheckpointMetadata",
    "CheckpointTuple",
    "Command",
    "CredentialAccessContext",
    "CredentialHealthError",
    "CredentialResolver",
    "CronTriggerConfig",
    "CronTriggerState",
    "InMemorySaver",
    "JsonPlusSerializer",
    "LANGGRAPH_SCRIPT_FORMAT",
    "PostgresWorkflowRepository",
    "RunHistoryStore",
    "RunnableConfig",
    "RunnableConfigModel",
    "SerializerProtocol",
    "StateGraph",
    "WorkflowNotFoundError",
    "WorkflowVersion",
    "WorkflowVersionNotFoundError",
    "WorkspaceQuotaExceededError",
    "build_graph",
    "build_initial_state",
    "check_calls",
    "close_browser_sessions_for_scope",
    "connection_kwargs",
    "create_repository",
    "create_vault",
    "credential_resolution",
    "encode_step_namespace",
    "ensure_credential_service",
    "get_checkpoint_id",
    "get_config",
    "get_settings",
    "get_vault",
    "group_commit_lacks",
    "is_delta_snapshot",
    "load_enabled_plugins",
    "let_unstored_graphs_end_steps",
    "load_graph_untimed",
    "merge_runnable_configs",
    "needs_ancestors",
    "normalize_json_mapping",
    "resolve_templates",
    "serializable_metadata",
    "split_subgraph_update",
    "triggers_of",
    "untraced",
    "without_creation",
    "write_indexes",
]

_ANY: Any = object()

# Each call as this project makes it, without the object of a method.
_CALLS: tuple[tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], ...] = (
    (build_graph, (_ANY,), {}),
    (
        load_graph_from_script,
        (_ANY,),
        dict.fromkeys(("entrypoint", "max_script_bytes", "execution_timeout_seconds"), _ANY),
    ),
    (build_initial_state, (_ANY,) * 4, {}),
    (merge_runnable_configs, (_ANY, _ANY), {}),
    (RunnableConfigModel.to_runnable_config, (_ANY,) * 2, {}),
    (RunnableConfigModel.to_state_config, (_ANY,) * 2, {}),
    (RunnableConfigModel.to_json_config, (_ANY,) * 2, {}),
    (CredentialAccessContext, (), {"workflow_id": _ANY, "workspace_id": _ANY}),
    (CredentialResolver, (_ANY,), {"context": _ANY}),
    (credential_resolution, (_ANY,), {}),
    (split_subgraph_update, (_ANY,), {}),
    (encode_step_namespace, (_ANY, _ANY), {}),
    (normalize_json_mapping, (_ANY,), {}),
    (close_browser_sessions_for_scope, (_ANY,), {}),
    (_resolve_in_state, (_ANY,) * 4, {}),
    (get_config, (), {}),
    (load_enabled_plugins, (), {}),
    (tracing_context, (), {"enabled": False}),
    (create_repository, (_ANY,) * 3, {}),
    (create_vault, (_ANY,), {}),
    (get_vault, (), {}),
    (BaseCredentialVault.list_all_credentials, (_ANY,), {"workspace_id": _ANY}),
    (RunHistoryStore.list_histories, (_ANY, _ANY), {"limit": _ANY}),
    (StateGraph.compile, (_ANY,), {"checkpointer": _ANY, "store": _ANY}),
    (
        CompiledStateGraph.astream,
        (_ANY, _ANY),
        dict.fromkeys(("config", "stream_mode", "subgraphs", "durability"), _ANY),
    ),
    (CompiledStateGraph.aget_state, (_ANY, _ANY), {}),
    (AsyncPostgresStore, (_ANY,), {}),
    (AsyncPostgresSaver, (_ANY,), {"serde": _ANY}),
    (AsyncPostgresSaver.setup, (_ANY,), {}),
    (AsyncPostgresSaver.aget_tuple, (_ANY, _ANY), {}),
    (AsyncPostgresSaver.aput, (_ANY,) * 5, {}),
    (AsyncPostgresSaver.aput_writes, (_ANY,) * 5, {}),
    (AsyncPostgresSaver.adelete_thread, (_ANY, _ANY), {}),
    # Cron.
    (CronTriggerState, (_ANY,), {"last_dispatched_at": _ANY}),
    (CronTriggerState.update_config, (_ANY, _ANY), {"last_dispatched_at": _ANY}),
    (CronTriggerState.peek_due, (_ANY,), {"now": _ANY}),
    (CronTriggerState.consume_due, (_ANY,), {}),
    (ensure_credential_service, (_ANY, _ANY), {}),
    (PostgresWorkflowRepository, (_ANY,), {"credential_service": _ANY}),
    (PostgresWorkflowRepository.get_workflow, (_ANY, _ANY), {}),
    (PostgresWorkflowRepository.get_workflow_workspace_id, (_ANY, _ANY), {}),
    (PostgresWorkflowRepository.get_latest_version, (_ANY, _ANY), {}),
    (
        PostgresWorkflowRepository.create_run,
        (_ANY, _ANY),
        dict.fromkeys(("workflow_version_id", "triggered_by", "input_payload", "actor", "workspace_id"), _ANY),
    ),
    (PostgresWorkflowRepository._connection, (_ANY,), {}),  # noqa: SLF001 - overridden
    (PostgresWorkflowRepository._ensure_initialized, (_ANY,), {}),  # noqa: SLF001
)


def check_calls() -> None:
    """Raise `SettingsError` if a callable does not accept the arguments that a worker passes."""
    for function, arguments, named in _CALLS:
        try:
            inspect.signature(function).bind(*arguments, **named)
        except TypeError as error:
            name = f"{function.__module__}.{function.__qualname__}"
            release = owner(function.__module__)
            raise SettingsError(
                f"{release}: {name} cannot be called with the arguments that a worker passes: {error}: {REMEDY}"
            ) from error


def resolve_templates(root: Sequence[str], resolve: Callable[[Sequence[str]], Any]) -> None:
    """Have `resolve` answer the templates of nodes and edges whose path begins with `root`; it gets the rest of it.

    Orcheo answers all others from the state of the run.
    """
    expected, length = list(root), len(root)

    def resolve_path(self: BaseRunnable, path: str, template: str, state: Any) -> tuple[Any, bool]:
        parts = path.split(".")
        if parts[:length] != expected:
            return _resolve_in_state(self, path, template, state)
        return resolve(parts[length:]), True

    setattr(BaseRunnable, _resolve_in_state.__name__, resolve_path)


# --- needed only by the group commit of checkpoints: if missing, LangGraph's own saver is used instead

_WRITE_INDEXES = "WRITES_IDX_MAP"
_METADATA = "get_serializable_checkpoint_metadata"
_DELTA_SNAPSHOT = "_DeltaSnapshot"
_CURSOR = "_cursor"

write_indexes: Mapping[str, int] = getattr(_base, _WRITE_INDEXES, {})
"""Indexes of writes that do not belong to a channel."""
serializable_metadata: Callable[..., Any] = getattr(_base, _METADATA, dict)
_delta_snapshot: type | None = getattr(_serde_types, _DELTA_SNAPSHOT, None)


def is_delta_snapshot(value: Any) -> bool:
    """Return whether a channel's value is a delta snapshot, which LangGraph marks in its checkpoint."""
    return _delta_snapshot is not None and isinstance(value, _delta_snapshot)


_DELTA_COUNTERS = "counters_since_delta_snapshot"


def needs_ancestors(metadata: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has a delta channel: its value is made of the writes since an earlier checkpoint."""
    return _DELTA_COUNTERS in metadata


_TASKS = "__pregel_tasks"


def triggers_of(graph: Any) -> frozenset[str] | None:
    """Return the channels whose update begins a step of a compiled graph, or None where LangGraph does not tell.

    A step that updates none of them is the last one: LangGraph's `apply_writes` decides in the same way.
    """
    triggers = getattr(graph, "trigger_to_nodes", None)
    return None if triggers is None else frozenset({*triggers, _TASKS})


def group_commit_lacks() -> str | None:
    """Return what the group commit of checkpoints needs and the installed LangGraph lacks, or None."""
    for name in (_WRITE_INDEXES, _METADATA):
        if not hasattr(_base, name):
            return f"{owner(_base.__name__)} has no {_base.__name__}.{name}"
    if _delta_snapshot is None and _has_delta_channels():
        return f"{owner(_serde_types.__name__)} has no {_serde_types.__name__}.{_DELTA_SNAPSHOT}"
    module = AsyncPostgresSaver.__module__
    cursor = getattr(AsyncPostgresSaver, _CURSOR, None)
    if cursor is None or "pipeline" not in inspect.signature(cursor).parameters:
        return f"{owner(module)} has no {module}.AsyncPostgresSaver.{_CURSOR}(pipeline)"
    return None


def _has_delta_channels() -> bool:
    """Return whether this LangGraph creates delta snapshots: releases before 1.2 do not."""
    try:
        import langgraph.channels.delta  # noqa: F401
    except ImportError:
        return False
    return True


# --- a defect of LangGraph

_LOOP = "langgraph.pregel._loop"
_PUT = "_put_checkpoint_fut"


class _NothingToStore:
    """The storing of the last checkpoint of a graph that has no checkpointer."""

    def __await__(self) -> Iterator[None]:
        return iter(())

    def result(self) -> None:
        return None


def let_unstored_graphs_end_steps() -> None:
    """Have a graph that was compiled with `checkpointer=False` wait for no checkpoint.

    Inside a graph whose steps are stored before the next one begins, it would wait for one that it has never made, and
    fail the run with an AttributeError.
    """
    loop = getattr(importlib.import_module(_LOOP), "PregelLoop", None)
    if loop is not None and not hasattr(loop, _PUT):
        setattr(loop, _PUT, _NothingToStore())


# --- missing in older releases

try:
    _postgres_pools: Any = importlib.import_module("orcheo.postgres_pools")
except ImportError:
    _postgres_pools = None

_NAMES_SCRIPTS = "script_filename" in inspect.signature(load_graph_from_script).parameters
"""Whether a script is loaded with its file name: releases before 0.44.1 do not."""


def load_graph_untimed(graph: Mapping[str, Any]) -> StateGraph[Any]:
    """Build the graph of a stored script without limiting its run time and size."""
    filename = graph.get("filename")
    named = {"script_filename": filename if isinstance(filename, str) else None} if _NAMES_SCRIPTS else {}
    return load_graph_from_script(
        graph["source"],
        entrypoint=graph.get("entrypoint"),
        max_script_bytes=None,
        execution_timeout_seconds=None,
        **named,
    )


_INITIALIZED = "_initialized"


def without_creation(vault: BaseCredentialVault) -> BaseCredentialVault:
    """Return the vault; if this release of Orcheo supports it, its first use creates no tables and indexes."""
    if hasattr(vault, _INITIALIZED):
        setattr(vault, _INITIALIZED, True)
    return vault


def untraced() -> AbstractContextManager[None]:
    """Send nothing that is executed within the block to LangSmith."""
    return tracing_context(enabled=False)


_CONNECTION_DEFAULTS: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "prepare_threshold": None,
}
"""The defaults of Orcheo 0.46; releases before 0.45.6 set fewer or none of them."""


def connection_kwargs(*, autocommit: bool, row_factory: Any) -> dict[str, Any]:
    """Return the arguments of a connection: Orcheo's own if it has them. They are safe behind a pooler."""
    arguments = {"autocommit": autocommit, "row_factory": row_factory}
    orcheos = getattr(_postgres_pools, "connection_kwargs", dict)
    return {**_CONNECTION_DEFAULTS, **orcheos(**arguments), **arguments}
