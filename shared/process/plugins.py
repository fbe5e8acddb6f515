"""Disable pydantic's plugins, which any installed package may provide, in processes that do not need them.

Orcheo installs one, logfire: it costs 15 MB and half a second, and does not watch our settings. Runners load plugins,
which may be meant for a workflow's models.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_DISABLED = "PYDANTIC_DISABLE_PLUGINS"
_OURS = "ORCHEO_DISPATCH_INTERNAL_NO_PLUGINS"


def keep_plugins_out() -> None:
    """Disable pydantic's plugins unless `PYDANTIC_DISABLE_PLUGINS` is set. Call it before pydantic is imported."""
    if _DISABLED not in os.environ:
        os.environ[_DISABLED] = "__all__"
        os.environ[_OURS] = "1"


def let_plugins_in(environment: MutableMapping[str, str] = os.environ) -> None:
    """Undo `keep_plugins_out` in an environment: that of this process, or one for a child."""
    if environment.pop(_OURS, None):
        environment.pop(_DISABLED, None)
