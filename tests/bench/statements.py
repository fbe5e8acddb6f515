"""How many statements the database gets, by who sends them: read off its log, since its package has no statistics.

A round of its own, and never a timed one: to log each statement costs more than many of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.setting import Setting

_PREFIX = "bench-statement %a|"
_LINE = re.compile(r"^bench-statement (?P<name>[^|]*)\|LOG: {2}(?:statement|execute [^:]*): ")
_SETTINGS = {"log_statement": "all", "log_line_prefix": _PREFIX}


@contextmanager
def counted(setting: Setting) -> Iterator[Counter[str]]:
    """Count the statements by `application_name`; the counter is full after the block.

    A statement is a round trip where it is not sent in a pipeline. Those of the benchmark itself are left out.
    """
    found: Counter[str] = Counter()
    for name, value in _SETTINGS.items():
        setting.rows(f"ALTER SYSTEM SET {name} = '{value}'")
    setting.rows("SELECT pg_reload_conf()")
    begin = setting.postgres.log.stat().st_size
    try:
        yield found
    finally:
        for name in _SETTINGS:
            setting.rows(f"ALTER SYSTEM RESET {name}")
        setting.rows("SELECT pg_reload_conf()")
        with setting.postgres.log.open(errors="replace") as log:
            log.seek(begin)
            names = (match["name"] for line in log if (match := _LINE.match(line)))
            found.update(name for name in names if name != "bench")
