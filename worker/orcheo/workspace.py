"""Restrict a client's configuration to the workspace of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcheo_dispatch.worker.orcheo.compat import RunnableConfigModel

_WORKSPACE = "workspace_id"
"""Agent nodes pass it on to their tools, which prefer it to the workspace in the run's own state."""
_ATTACHMENTS = "attachment_scope"


def within_workspace(config: RunnableConfigModel, workspace_id: str) -> RunnableConfigModel:
    """Return `config` without references to another workspace; the same object if there are none.

    A client sends `runnable_config`, and Orcheo stores it unchecked.
    """
    configurable = dict(config.configurable)
    if _WORKSPACE in configurable:
        configurable[_WORKSPACE] = workspace_id
    if not _is_within(configurable.get(_ATTACHMENTS), workspace_id):
        del configurable[_ATTACHMENTS]
    if configurable == config.configurable:
        return config
    return config.model_copy(update={"configurable": configurable})


def _is_within(scope: Any, workspace_id: str) -> bool:
    """Return whether all workspaces that a scope names, at any depth, are this one."""
    if not isinstance(scope, Mapping):
        return True
    return scope.get(_WORKSPACE, workspace_id) == workspace_id and all(
        _is_within(part, workspace_id) for part in scope.values()
    )
