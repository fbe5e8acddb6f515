"""How a name in the settings becomes an executor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.worker.executor.protocol import FunctionExecutor, Run, load_executor


class Quiet:
    async def execute(self, run: Run) -> Mapping[str, Any] | None:
        return None


QUIET = Quiet()


def make_quiet() -> Quiet:
    return Quiet()


async def shout(run: Run) -> Mapping[str, Any] | None:
    return {"loud": run.run_id}


@pytest.mark.parametrize("name", ["Quiet", "QUIET", "make_quiet"])
def test_class_instance_and_factory_are_taken(name: str) -> None:
    assert type(load_executor(f"{__name__}:{name}")).__name__ == "Quiet"


def test_async_function_is_taken() -> None:
    assert isinstance(load_executor(f"{__name__}:shout"), FunctionExecutor)


@pytest.mark.parametrize("name", ["nowhere", "no.such.module:x", f"{__name__}:missing", f"{__name__}:DSN", ":x"])
def test_wrong_name_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match="ORCHEO_WORKER_EXECUTOR"):
        load_executor(name)


DSN = "not an executor"


def test_inputs_do_not_show_in_repr() -> None:
    run = Run("r1", 1, 1, "w", "v", "a", "webhook", {"secret": "hunter2"}, {"configurable": {"key": "hunter2"}})
    assert "hunter2" not in repr(run)
