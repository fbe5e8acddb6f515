"""Imports what a worker imports of Orcheo and prints as JSON what is wrong: `python -m worker.orcheo.probe`.

A process of its own, so that whoever asks need neither import Orcheo nor survive that.
"""

from __future__ import annotations

import json

from shared.credentials import export_credentials
from shared.errors import SettingsError


def probe() -> dict[str, str | None]:
    """Import what a worker imports, and look at its names and signatures.

    `wrong` says why no worker can start, `unfit` why checkpoints are written by LangGraph's own saver.
    """
    try:
        export_credentials()
        from worker.orcheo import compat

        compat.check_calls()
        return {"wrong": None, "unfit": compat.group_commit_lacks()}
    except (SettingsError, ImportError) as error:
        return {"wrong": " ".join(str(error).split()), "unfit": None}


if __name__ == "__main__":
    print(json.dumps(probe()))
