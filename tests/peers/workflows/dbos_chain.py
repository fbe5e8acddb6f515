"""The chain as a workflow of DBOS: `dbos_chain.py work URL` executes runs, `... submit URL LOG` queues one."""

import sys
import threading

from chain_step import STEPS, execute
from dbos import DBOS, DBOSClient, DBOSConfig

_QUEUE = "chain"


@DBOS.step()
async def step(log: str, number: int) -> int:
    """Execute one step."""
    await execute(log, number)
    return number


@DBOS.workflow()
async def chain(log: str) -> int:
    """Execute the steps one after the other."""
    done = 0
    for number in range(1, STEPS + 1):
        done = await step(log, number)
    return done


def work(url: str) -> None:
    """Execute runs until the process is ended."""
    config: DBOSConfig = {
        "name": "chain",
        "system_database_url": url,
        "executor_id": "worker",
        "application_version": "1",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(_QUEUE)
    print("chain is ready", flush=True)
    threading.Event().wait()


def submit(url: str, log: str) -> None:
    """Queue a run and print its id."""
    client = DBOSClient(system_database_url=url)
    handle = client.enqueue({"queue_name": _QUEUE, "workflow_name": "chain", "app_version": "1"}, log)
    print(handle.workflow_id)


if __name__ == "__main__":
    {"work": work, "submit": submit}[sys.argv[1]](*sys.argv[2:])
