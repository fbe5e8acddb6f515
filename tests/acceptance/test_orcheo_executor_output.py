"""The executor and what Postgres cannot store."""

from __future__ import annotations

import json

from orcheo_dispatch.worker.executor.payload import storable
from tests.support.database.databases import Database
from tests.support.database.runs import everything
from tests.support.orcheo.executions import history, new_run, play
from tests.support.runners.local_outside import LocalExecutor


def test_unstorable_output_leaves_history_whole(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("unstorable", inputs={"note": "x\x00y"})
        output = storable(await executor.execute(run))
        kept = {"nan": None, "text": "a\ufffdb\ufffd", "keys": {"1": None}}
        # The final state has been through LangGraph's checkpoint, which makes a lone surrogate a "?".
        assert output["final_state"]["node_results"] == {"start": kept | {"text": "a\ufffdb?"}}
        assert everything(orcheo_here, "SELECT %s::jsonb", json.dumps(output))
        record, steps = history(orcheo_here, run)
        assert record["status"] == "completed"
        assert record["inputs"] == {"note": "x\ufffdy"}
        assert steps[0] == {"start": {"node_results": {"start": kept}}}

    play(scenario)
