"""Every error that this project raises on purpose.

DispatchError                  the command prints it as one line and exits with `exit_code`
|-- SettingsError         2    a setting or an argument is wrong
|-- DatabaseError         3    Postgres is unavailable, refuses us, or lacks what we need
|   |-- SchemaError       3    Orcheo's tables or our schema are missing or too old
|   |-- RowLockedError    3    another session held a lock for longer than the lock timeout
|   |-- ConflictError     3    Postgres rolled back our transaction because of others, several times in a row
|   `-- RefusedError      3    Postgres will never accept a value: a constraint, a trigger, a policy or a limit
`-- BrokerError           4    Redis is unavailable or refuses us
"""

from __future__ import annotations

from typing import ClassVar


class DispatchError(Exception):
    """Something failed that an operator can fix; the text is one line and holds no secret."""

    exit_code: ClassVar[int] = 1


class SettingsError(DispatchError):
    """A setting or an argument is invalid: the text names it, its value and what is expected."""

    exit_code: ClassVar[int] = 2

    @classmethod
    def wrong(cls, variable: str, got: object, takes: str) -> SettingsError:
        """Return the error for a variable or option that has the value `got` and accepts `takes`."""
        return cls(f"{variable}={got!r} is invalid: expected {takes}")


class DatabaseError(DispatchError):
    """Postgres is unavailable or refuses a statement.

    `answered` distinguishes the two: it is true if the server reported an error and the session continues, so that
    other statements may succeed. Neither the SQLSTATE nor the class of the error is enough to tell, because a trigger
    can raise any SQLSTATE, including those of outages.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        text: str,
        *,
        sqlstate: str | None = None,
        cause: str | None = None,
        answered: bool = False,
        in_doubt: bool = False,
    ) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.answered = answered
        self.in_doubt = in_doubt
        """The connection broke after the transaction had begun, so the transaction may have been committed."""
        self._cause = cause

    @property
    def what(self) -> str:
        """The class of the error and its SQLSTATE, never its text, which may quote a value."""
        return f"{self._cause or type(self).__name__}" + (f" (SQLSTATE {self.sqlstate})" if self.sqlstate else "")


class SchemaError(DatabaseError):
    """Orcheo's tables or our schema are missing or too old."""


class RowLockedError(DatabaseError):
    """Another session held a lock for longer than the lock timeout; nothing was changed."""


class ConflictError(DatabaseError):
    """Postgres rolled back our transaction because of others, for example after a deadlock; nothing was changed."""


class RefusedError(DatabaseError):
    """Postgres will never accept one of the values; nothing was changed, and a retry would fail as well."""


class BrokerError(DispatchError):
    """Redis is unavailable or refuses us."""

    exit_code: ClassVar[int] = 4
