"""The second workflow of the demo: an agent that asks a model what to do next, calls the tool, and asks again.

The model is a rule and the tool a table, so that nothing needs a network or a key. With a real model and real tools the
graph is the same.
"""

import asyncio
from pathlib import Path

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import AINode, TaskNode

STEP_SECONDS = 1.0
PRICES = {"paper": 5, "ink": 30, "glue": 2}


class Model(AINode):
    """Asks for the price of each item of the webhook, then answers with their sum."""

    async def run(self, state, config):
        """Return the next message: a call of the tool, or the answer."""
        prices = [int(message.content) for message in state["messages"] if isinstance(message, ToolMessage)]
        await work(state, f"model {len(prices) + 1}")
        items = state["inputs"]["body"]["items"]
        if len(prices) == len(items):
            return {"messages": [AIMessage(f"Together they cost {sum(prices)} EUR.")]}
        item = items[len(prices)]
        call = {"name": "look_up", "args": {"item": item}, "id": f"call-{item}"}
        return {"messages": [AIMessage("", tool_calls=[call])]}


class LookUp(TaskNode):
    """The tool: looks up the price that the model asks for."""

    async def run(self, state, config):
        """Return the price of one item."""
        (call,) = state["messages"][-1].tool_calls
        item = call["args"]["item"]
        await work(state, f"look_up {item}")
        return {"messages": [ToolMessage(str(PRICES[item]), tool_call_id=call["id"])]}


async def work(state, step):
    """Note in the file that the webhook names that the step begins, and take as long as a real call would."""
    with Path(state["inputs"]["body"]["begun"]).open("a", encoding="utf-8") as begun:
        begun.write(f"{step}\n")
    await asyncio.sleep(STEP_SECONDS)


def next_node(state):
    """Return where a message of the model leads."""
    return "look_up" if state["messages"][-1].tool_calls else END


def build():
    """Return the graph."""
    graph = StateGraph(State)
    graph.add_node("model", Model(name="model"))
    graph.add_node("look_up", LookUp(name="look_up"))
    graph.set_entry_point("model")
    graph.add_conditional_edges("model", next_node, ["look_up", END])
    graph.add_edge("look_up", "model")
    return graph
