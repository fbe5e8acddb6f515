"""Import what a worker imports from Orcheo and print as JSON what is wrong.

Runs in its own process, so that the caller neither imports Orcheo nor crashes with it.
"""

from __future__ import annotations

import json

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.credentials import export_credentials


def probe() -> dict[str, str | None]:
    """Import what a worker imports, and check its names and signatures.

    `wrong` is why no worker can start, `unfit` why checkpoints are written by LangGraph's own saver.
    """
    try:
        export_credentials()
        from orcheo_dispatch.worker.orcheo import compat

        compat.check_calls()
        return {"wrong": None, "unfit": compat.group_commit_lacks()}
    except (SettingsError, ImportError) as error:
        return {"wrong": " ".join(str(error).split()), "unfit": None}


if __name__ == "__main__":
    print(json.dumps(probe()))
