"""Put a mutant in force: in this process, and in a copy of the source that the processes of a test import."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import TextClause, text

from tests.mutants.statements import ROOT, Definition, Statement


class SourceCopy:
    """A copy of the product's source in `folder`. Once used, every process started from here imports it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "src", folder, ignore=shutil.ignore_patterns("__pycache__"))

    @contextmanager
    def changed(self, statement: Statement, mutant: str) -> Iterator[None]:
        """Have the copy contain the mutant in place of the statement."""
        path = self._folder / "orcheo_dispatch" / statement.path
        original = path.read_text(encoding="utf-8")
        self._write(path, statement.source_with(mutant))
        try:
            yield
        finally:
            self._write(path, original)

    def use(self) -> None:
        """Have all processes that this one starts import the copy, whatever environment they are given."""
        start: Any = subprocess.Popen.__init__

        def started(popen: Any, *arguments: Any, env: Any = None, **more: Any) -> None:
            environment = dict(os.environ if env is None else env)
            others = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(self._folder), *([others] if others else [])])
            start(popen, *arguments, env=environment, **more)

        subprocess.Popen.__init__ = started  # type: ignore[method-assign, assignment]

    def _write(self, path: Path, source: str) -> None:
        path.write_text(source, encoding="utf-8")
        # Compiled code is trusted if size and second of the last change agree.
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()


def put_in_force(statement: Statement, mutant: str) -> None:
    """Replace the statement in this process, wherever it was imported. Cannot be taken back.

    One of the schema is in force in the databases.
    """
    if isinstance(statement, Definition):
        return
    name, _, key = statement.name.partition(".")
    module = importlib.import_module(statement.module)
    value = vars(module)[name]
    if isinstance(value, TextClause):
        vars(value).clear()
        vars(value).update(vars(text(mutant)))
    elif isinstance(value, dict):
        value[key] = mutant
    else:
        for each in [*sys.modules.values()]:
            if getattr(each, name, None) is value:
                setattr(each, name, mutant)
