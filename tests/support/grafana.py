"""The dashboard for Grafana's import by hand, made of the one that is provisioned: `python -m tests.support.grafana`.

Grafana asks for the data sources of `__inputs` at an import, and ignores them in a provisioned file. That one has
variables instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parents[2] / "ops" / "grafana"
PROVISIONED = GRAFANA / "orcheo-dispatch.json"
IMPORTED = GRAFANA / "orcheo-dispatch.import.json"
INPUTS = {"postgres": "DS_POSTGRES", "prometheus": "DS_PROMETHEUS"}
"""Each variable of the provisioned dashboard, and the input that takes its place."""
_TYPES = {"timeseries": "Time series", "table": "Table", "stat": "Stat"}
_GRAFANA = "10.3.0"


def importable(provisioned: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard that asks for its data sources when it is imported."""
    variables = {variable["name"]: variable for variable in provisioned["templating"]["list"]}
    inputs = [
        {
            "name": INPUTS[name],
            "label": variable["label"],
            "description": "",
            "type": "datasource",
            "pluginId": variable["query"],
            "pluginName": {"postgres": "PostgreSQL", "prometheus": "Prometheus"}[name],
        }
        for name, variable in variables.items()
    ]
    used = sorted({panel["type"] for panel in provisioned["panels"]} - {"row"})
    requires = [
        {"type": "grafana", "id": "grafana", "name": "Grafana", "version": _GRAFANA},
        *(
            {"type": "datasource", "id": each["pluginId"], "name": each["pluginName"], "version": "1.0.0"}
            for each in inputs
        ),
        *({"type": "panel", "id": each, "name": _TYPES[each], "version": ""} for each in used),
    ]
    text = json.dumps({**provisioned, "id": None, "templating": {"list": []}})
    for name, given in INPUTS.items():
        text = text.replace(f"${{{name}}}", f"${{{given}}}")
    return {"__inputs": inputs, "__requires": requires, **json.loads(text)}


def written(dashboard: dict[str, Any]) -> str:
    """Return the text of a file with this dashboard."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    IMPORTED.write_text(written(importable(json.loads(PROVISIONED.read_text(encoding="utf-8")))), encoding="utf-8")
