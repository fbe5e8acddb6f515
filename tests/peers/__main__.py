"""`python -m tests.peers`: what becomes of a run whose process is killed or paused, one system after the other."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from tests.peers.dbos_peer import Dbos
from tests.peers.experiments import LAST, THIRD, kill, pause
from tests.peers.ground import ground
from tests.peers.langgraph_peers import Aegra, AegraRedis, LangGraphDev, LangGraphDevFlushed
from tests.peers.orcheo_peers import OrcheoDispatch, OrcheoWorker, OrcheoWorkerRedelivered
from tests.peers.peer import Peer
from tests.peers.report import Row, print_rows

PEERS: dict[str, type[Peer]] = {
    "dispatch": OrcheoDispatch,
    "orcheo": OrcheoWorker,
    "orcheo-redelivered": OrcheoWorkerRedelivered,
    "langgraph": LangGraphDev,
    "langgraph-flushed": LangGraphDevFlushed,
    "aegra": Aegra,
    "aegra-redis": AegraRedis,
    "dbos": Dbos,
}

EXPERIMENTS = ("kill", "pause", "pause-last")


def main() -> int:
    """Carry out what the arguments ask for; return 0 where all systems could be measured."""
    arguments = _arguments()
    rows = []
    for name, peer in PEERS.items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"--- {peer.name}", flush=True)
        rows.append(_measured(peer, arguments.experiment or EXPERIMENTS, arguments.times))
        print_rows(rows[-1:])
    print_rows(rows)
    return 1 if any(row.failed for row in rows) else 0


def _measured(peer: type[Peer], experiments: Sequence[str], times: int) -> Row:
    row = Row(peer.name, "")
    try:
        peer.environment.build()
        row.versions = ", ".join(f"{name} {version}" for name, version in peer.environment.versions().items())
        with ground() as servers:
            system = peer(servers)
            with system.prepared():
                for time in range(times):
                    if "kill" in experiments:
                        row.killed.append(kill(system, servers.folder / f"killed-{time}.jsonl"))
                    for name, step in (("pause", THIRD), ("pause-last", LAST)):
                        if name in experiments and peer.shares_a_database:
                            row.paused.append(pause(system, servers.folder / f"{name}-{time}.jsonl", step))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        row.failed = f"not measured: {error}"
    return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--only", action="append", choices=PEERS, help="one system; may be given again")
    parser.add_argument("--times", type=int, default=1, help="how often each experiment is carried out")
    parser.add_argument("--experiment", action="append", choices=EXPERIMENTS, help="one of them; may be given again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
