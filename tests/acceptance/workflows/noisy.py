"""Says all that it knows, in every way that there is: its inputs and a credential."""

import asyncio
import gc
import logging
import sys
import threading
import warnings
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.debug import DebugNode


class NoisyNode(TaskNode):
    """Logs, prints, warns and raises where nobody catches."""

    token: str

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Do all of it."""
        said = f"{state['inputs']['body']['name']} and {self.token}"
        logger = logging.getLogger("a.workflow")
        logger.error(said)
        logger.error("it is %s", said)
        logging.getLogger("orcheo.nodes.mine").warning("it is %s", said)
        print(said)
        print(said, file=sys.stderr)
        await asyncio.to_thread(print, said)
        warnings.warn(said, UserWarning, stacklevel=1)
        stray = threading.Thread(target=self._fail, args=[said], name="stray")
        stray.start()
        stray.join()
        forgotten = asyncio.create_task(asyncio.to_thread(self._fail, said))
        await asyncio.wait([forgotten])
        del forgotten
        gc.collect()
        return {"said": said}

    @staticmethod
    def _fail(said: str) -> None:
        raise ValueError(said)


class RudeNode(TaskNode):
    """Takes logging for itself, as scripts do that were made to run alone."""

    async def run(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Take it, and log."""
        logging.basicConfig(force=True, level="DEBUG")
        logging.getLogger("a.workflow").error(state["inputs"]["body"]["name"])
        return {}


def build() -> StateGraph:
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("noise", NoisyNode(name="noise", token="[[door_key]]"))
    graph.add_node("tap", DebugNode(name="tap", message="{{inputs.body.name}}", tap_path="noise.said"))
    graph.set_entry_point("noise")
    graph.add_edge("noise", "tap")
    graph.add_node("rude", RudeNode(name="rude"))
    graph.add_edge("tap", "rude")
    graph.add_edge("rude", END)
    return graph
