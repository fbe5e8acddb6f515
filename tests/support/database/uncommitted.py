"""An engine for calls whose transaction the test commits, after it has seen what others do meanwhile."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from sqlalchemy import Connection


class Uncommitted:
    """Stands in for an engine, and for its connection, whose transaction somebody else commits, later."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        """Have the connection execute."""
        return getattr(self._connection, name)

    def connect(self) -> AbstractContextManager[Self]:
        """Return the connection with the open transaction."""
        return nullcontext(self)

    def execution_options(self, **_: Any) -> Self:
        """Leave the settings of the open transaction as they are."""
        return self

    def begin(self) -> AbstractContextManager[None]:
        """Begin nothing."""
        return nullcontext()
