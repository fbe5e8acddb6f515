"""Keep pydantic's plugins, which any installed package may bring, out of processes that do not need them.

Orcheo brings one, logfire: 15 MB and half a second for settings that it does not watch. Runners get them: a workflow's
models may be what they are for.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_DISABLED = "PYDANTIC_DISABLE_PLUGINS"
_OURS = "ORCHEO_DISPATCH_INTERNAL_NO_PLUGINS"


def keep_plugins_out() -> None:
    """Make pydantic load no plugin in this process, unless the environment names one. Call before importing it."""
    if _DISABLED not in os.environ:
        os.environ[_DISABLED] = "__all__"
        os.environ[_OURS] = "1"


def let_plugins_in(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take back what `keep_plugins_out` did to an environment: that of this process, or one for a child."""
    if environment.pop(_OURS, None):
        environment.pop(_DISABLED, None)
