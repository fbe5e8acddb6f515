"""What a step can know of its execution: the run's id, the attempt, and the step's idempotency key.

Nodes find them in their `RunnableConfig`, as `config["configurable"]["orcheo_dispatch"]`, and templates as
`{{config.configurable.orcheo_dispatch.NAME}}`. They are in no state, so neither the output of a run nor a checkpoint
has them, and a resumed run has those of its own attempt.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any

from orcheo_dispatch.worker.executor.protocol import Run
from orcheo_dispatch.worker.orcheo.compat import RunnableConfig, get_config, resolve_templates

_NAME = "orcheo_dispatch"
_ROOT = ("config", "configurable", _NAME)
_KEY = "idempotency_key"
# Of LangGraph's namespaces, such as `agent:TASK|tools:TASK`.
_BETWEEN_GRAPHS = "|"
_BEFORE_TASK = ":"


class StepValues(dict[str, Any]):
    """The values of one run; the key is that of the step in which it is read.

    The key is `run_id:checkpoint_id:task_id`. LangGraph derives a task's id from the checkpoint that the task starts
    from and from its place in the graph, so the key is equal if a step is executed again from the same checkpoint, and
    differs between steps, branches, passes of a loop and runs. Outside of a step there is no key.

    A dictionary, because Orcheo's code stores what is in a configuration and sends it as JSON. A copy is a plain one.
    """

    def __init__(self, run_id: str, attempt: int) -> None:
        super().__init__(run_id=run_id, attempt=attempt)

    def now(self) -> dict[str, Any]:
        """Return the values as they are in the step that is being executed."""
        step = _step()
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


def with_step_values(config: RunnableConfig, run: Run) -> RunnableConfig:
    """Return the configuration of a run with its values. What a client sent under their name is not used."""
    return {**config, "configurable": {**config["configurable"], _NAME: StepValues(run.run_id, run.attempt)}}


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


def _step() -> str | None:
    """Return what identifies the step that is being executed, within its run; None outside of a step."""
    config = _config()
    configurable = config["configurable"] if config is not None else {}
    graph, _, place = str(configurable.get("checkpoint_ns") or "").rpartition(_BETWEEN_GRAPHS)
    _, _, task_id = place.rpartition(_BEFORE_TASK)
    checkpoint_id = configurable.get("checkpoint_map", {}).get(graph)
    return f"{checkpoint_id}:{task_id}" if task_id and checkpoint_id else None


def _config() -> RunnableConfig | None:
    """Return the configuration of the task that is being executed; None outside of tasks."""
    try:
        config = get_config()
    except RuntimeError:
        return None
    return config if "configurable" in config else None
