"""What a step can know of its execution: the run's id, the attempt, and the step's idempotency key.

Nodes find them in their `RunnableConfig`, as `config["configurable"]["orcheo_dispatch"]`, and templates as
`{{config.configurable.orcheo_dispatch.NAME}}`. They are in no state, so neither the output of a run nor a checkpoint
has them, and a resumed run has those of its own attempt.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from hashlib import sha256
from typing import Any

from orcheo_dispatch.worker.executor.protocol import Run
from orcheo_dispatch.worker.orcheo.compat import RunnableConfig, get_config, resolve_templates

_NAME = "orcheo_dispatch"
_ROOT = ("config", "configurable", _NAME)
_KEY = "idempotency_key"
# Of LangGraph's namespaces, such as `agent:TASK|tools:TASK`.
_BETWEEN_GRAPHS = "|"
_BEFORE_TASK = ":"
_DIGITS = 32

type IsStored = Callable[[str, str], bool]
"""Returns whether the checkpoint in this namespace with this id is stored."""


class StepValues(dict[str, Any]):
    """The values of one run; the key is that of the step in which it is read.

    The key is `run_id:checkpoint_id:task_id`. LangGraph derives a task's id from the checkpoint that the task starts
    from and from its place in the graph, so the key is equal if a step is executed again from the same checkpoint, and
    differs between steps, branches, passes of a loop and runs. Outside of a step there is no key.

    A dictionary, because Orcheo's code stores what is in a configuration and sends it as JSON. A copy is a plain one.
    """

    def __init__(self, run_id: str, attempt: int, is_stored: IsStored) -> None:
        super().__init__(run_id=run_id, attempt=attempt)
        self._is_stored = is_stored

    def now(self) -> dict[str, Any]:
        """Return the values as they are in the step that is being executed."""
        step = _step(self._is_stored)
        return {**self._of_run(), _KEY: f"{super().__getitem__('run_id')}:{step}"} if step else self._of_run()

    def __getitem__(self, name: str) -> Any:
        """Return a value. Raises `KeyError` if there is none, as for the key outside of a step."""
        return self.now()[name]

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return a value, or `default` if there is none."""
        return self.now().get(name, default)

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a value."""
        return name in self.now()

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter(self.now())

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self.now())

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """Return the names."""
        return self.now().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return the values."""
        return self.now().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return names and values."""
        return self.now().items()

    def copy(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return self.now()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Have copies be plain dictionaries."""
        return dict, (self.now(),)

    def _of_run(self) -> dict[str, Any]:
        return dict(super().items())


def with_step_values(config: RunnableConfig, run: Run, is_stored: IsStored | None) -> RunnableConfig:
    """Return the configuration of a run with its values. What a client sent under their name is not used.

    `is_stored` is None if the run cannot be resumed: no step is executed again from the same checkpoint.
    """
    values = StepValues(run.run_id, run.attempt, is_stored or _any)
    return {**config, "configurable": {**config["configurable"], _NAME: values}}


def provide_in_templates() -> None:
    """Have the templates of all nodes resolve to the values of the run that executes them."""
    resolve_templates(_ROOT, _resolve)


def _resolve(path: Sequence[str]) -> Any:
    """Return what a template names. Raises `ValueError` if that does not exist.

    Orcheo would leave such a template as it is: a constant that every request would have as its key.
    """
    config = _config()
    values = config["configurable"].get(_NAME) if config is not None else None
    if not isinstance(values, StepValues):
        raise ValueError(f"{'.'.join(_ROOT)} is not available here")  # noqa: TRY004 - no wrong type
    here = values.now()
    if not path:
        return here
    if len(path) > 1 or path[0] not in here:
        raise ValueError(f"{'.'.join((*_ROOT, *path))} does not exist: expected one of {', '.join(here)}")
    return here[path[0]]


def _step(is_stored: IsStored) -> str | None:
    """Return what identifies the step that is being executed, within its run; None outside of a step."""
    config = _config()
    configurable = config["configurable"] if config is not None else {}
    graph, _, place = str(configurable.get("checkpoint_ns") or "").rpartition(_BETWEEN_GRAPHS)
    checkpoints = configurable.get("checkpoint_map") or {}
    task_id = _task_id(place)
    if config is None or not task_id or graph not in checkpoints:
        return None
    if not is_stored(graph, checkpoints[graph]):
        return _unstored_step(config, graph, is_stored) or f"{checkpoints[graph]}:{task_id}"
    return f"{checkpoints[graph]}:{task_id}"


def _unstored_step(config: RunnableConfig, graph: str, is_stored: IsStored) -> str | None:
    """Return what identifies a step of a graph that stores no checkpoints; None if that around it stores none either.

    When its step is executed again such a graph starts from the beginning, with other ids. What stays are the step
    around it, which is stored, and the place of the step within the graph.
    """
    *around, place = graph.split(_BETWEEN_GRAPHS)
    calls = []
    while around and place.isdigit():
        # The step around it has called more than one graph.
        calls.append(place)
        place = around.pop()
    outer = _BETWEEN_GRAPHS.join(around)
    checkpoint_id, metadata = config["configurable"]["checkpoint_map"].get(outer), config.get("metadata") or {}
    if not graph or not checkpoint_id or not is_stored(outer, checkpoint_id):
        return None
    within = [calls, *(metadata.get(name) for name in ("langgraph_step", "langgraph_node", "langgraph_path"))]
    return f"{checkpoint_id}:{_task_id(place)}.{sha256(repr(within).encode()).hexdigest()[:_DIGITS]}"


def _any(namespace: str, checkpoint_id: str) -> bool:  # noqa: ARG001 - of the type
    return True


def _task_id(place: str) -> str:
    return place.rpartition(_BEFORE_TASK)[2]


def _config() -> RunnableConfig | None:
    """Return the configuration of the task that is being executed; None outside of tasks."""
    try:
        config = get_config()
    except RuntimeError:
        return None
    return config if "configurable" in config else None
