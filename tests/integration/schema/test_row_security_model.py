"""Tables whose rows may be hidden from a role are those that a model in Python finds, for policies made at random."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from sqlalchemy import text

from orcheo_dispatch.shared.schema.footing import unmet_to_write
from tests.support.database.comparing import RolledBack
from tests.support.database.rows import READER

_NEEDED = {
    "orcheo_dispatch.policy": {"SELECT", "INSERT", "UPDATE", "DELETE"},
    "workflow_runs": {"SELECT", "UPDATE"},
    "workflows": {"SELECT"},
}
"""The commands that we use."""
_GROUPS = ("its_group", "other_group")
_ROLES = ("PUBLIC", READER, *_GROUPS)


@dataclass(frozen=True)
class Policy:
    """A policy of row-level security."""

    table: str
    permissive: bool
    command: str
    role: str
    using: str | None
    check: str | None

    @property
    def applies(self) -> bool:
        """Whether it concerns our role."""
        return self.role != "other_group"

    @property
    def is_open(self) -> bool:
        """Whether it lets every row pass."""
        return {self.using, self.check} <= {None, "true"}

    def created(self, name: str) -> str:
        """Return the statement that creates it."""
        kind = "PERMISSIVE" if self.permissive else "RESTRICTIVE"
        using = f" USING ({self.using})" if self.using else ""
        check = f" WITH CHECK ({self.check})" if self.check else ""
        return f"CREATE POLICY {name} ON {self.table} AS {kind} FOR {self.command} TO {self.role}{using}{check}"


def _at_random(random: Random) -> Policy:
    command = random.choice(("ALL", "ALL", "SELECT", "INSERT", "UPDATE", "DELETE"))
    conditions = ("true", "true", "current_user = 'somebody'")
    return Policy(
        table=random.choice([*_NEEDED]),
        permissive=random.random() < 0.8,
        command=command,
        role=random.choice(_ROLES),
        using=None if command == "INSERT" else random.choice(conditions),
        check=None if command in ("SELECT", "DELETE") else random.choice((None, *conditions)),
    )


def _hidden(table: str, policies: list[Policy]) -> bool:
    concerning = [each for each in policies if each.table == table and each.applies]
    if any(not each.permissive and not each.is_open for each in concerning):
        return True
    covered = {each.command for each in concerning if each.permissive and each.is_open}
    return "ALL" not in covered and not _NEEDED[table] <= covered


@pytest.mark.parametrize("part", range(4))
def test_rows_may_be_hidden_where_the_model_says(rolled_back: RolledBack, part: int) -> None:
    found = set()
    for seed in range(40):
        random = Random(f"{part} {seed}")
        policies = [_at_random(random) for _ in range(random.randint(0, 12))]
        secured = {table for table in _NEEDED if random.random() < 0.8}
        expected = sorted(table for table in secured if _hidden(table, policies))
        with rolled_back() as connection:
            for role in (READER, *_GROUPS):
                connection.execute(text(f"CREATE ROLE {role}"))
            connection.execute(text(f"GRANT its_group TO {READER}"))
            connection.execute(text(f"GRANT USAGE ON SCHEMA orcheo_dispatch TO {READER}"))
            for table in secured:
                connection.execute(text(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"))
            for number, policy in enumerate(policies):
                connection.execute(text(policy.created(f"p{number}")))
            connection.execute(text("SET LOCAL ROLE " + READER))
            unmet = [each.found for each in unmet_to_write(connection) if each.what == "row-level security"]
        names = ", ".join(expected)
        assert unmet == ([f"policies may hide rows of {names} from this role"] if expected else []), seed
        found.add(len(expected))
    assert {0, 1, 2} <= found
