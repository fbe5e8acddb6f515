"""Choose the checkpointer of runs: ours or, if the tables do not fit our statements, LangGraph's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orcheo_dispatch.worker.books.heads import Head
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox
from orcheo_dispatch.worker.orcheo.saving.own_saver import OwnSaver
from orcheo_dispatch.worker.orcheo.saving.resuming import ResumingSaver
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver

type Saver = RunSaver | OwnSaver
type MakeSaver = Callable[[str, Outbox], Saver]
"""Creates the checkpointer of the run with this id."""
type MakeResumingSaver = Callable[[str, Outbox, Sequence[Head], str], ResumingSaver]
"""Creates that of a run that is stored step by step, and continues from these checkpoints of an earlier attempt.

The last argument is the checksum of its graph.
"""
