"""No command line of our documentation holds a secret: all users of a host see the arguments of its processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ENDINGS = {".md", ".yml", ".yaml", ".sh", ".service", ".sql", ".example", ".toml", ".ini", ".cfg", ""}
_FORBIDDEN = {
    "a DSN or URL that holds a password, or a variable that does": re.compile(
        r"\b(?:psql|pg_dump|pg_restore|pg_basebackup|createdb|dropdb|redis-cli|curl|wget|docker run|podman run)\b"
        r"[^|;\n]*(?:\w://[^\s/@:]*:[^\s/@]+@|\$\{?\w*(?:DSN|URL|PASSWORD|TOKEN|SECRET)\b|\bpassword=)"
    ),
    "a password as an argument": re.compile(
        r"\bredis-cli\b[^|;\n]*\s(?:-a|--pass)\b|\b(?:curl|wget)\b[^|;\n]*\s(?:-u|--user|--password)\s"
        r"|\bdocker (?:run|exec)\b[^|;\n]*-e\s*\w*(?:DSN|PASSWORD|TOKEN|SECRET|KEY)\w*="
    ),
    "a variable with a password before a command": re.compile(
        r"\b(?:PGPASSWORD|REDISCLI_AUTH|\w*_(?:TOKEN|SECRET|PASSWORD|DSN))=[^\s#`]+\s+[a-z][\w-]*\b"
    ),
    "a header with a token": re.compile(r"\bcurl\b[^|;\n]*(?:-H|--header)\s*[\"'][^\"'\n]*(?:Authorization|Cookie):"),
}


def _files() -> Iterator[Path]:
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", ROOT / "tox.ini", ROOT / "mkdocs.yml"]
    yield from (path for path in places if path.exists())
    for folder in ("docs", "ops", ".ci"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in _ENDINGS)


def _wrong(text: str) -> list[tuple[str, str]]:
    joined = text.replace("\\\n", " ")
    return [(what, found.group()) for what, pattern in _FORBIDDEN.items() for found in pattern.finditer(joined)]


def test_no_command_line_of_the_documentation_holds_a_secret() -> None:
    files = list(_files())
    assert len(files) > 30
    found = {str(path.relative_to(ROOT)): _wrong(path.read_text(encoding="utf-8")) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        'psql "$OWNER_DSN" -c "SELECT 1"',
        "psql postgresql://me:pw@host/db",
        "psql \\\n  'host=h password=x'",
        "redis-cli -a secret PING",
        "redis-cli -u redis://:pw@host PING",
        "PGPASSWORD=x psql -h host",
        "ORCHEO_SERVICE_TOKEN=abc orcheo-dispatch dispatcher",
        'curl -H "Authorization: Bearer $TOKEN" http://x',
        "curl -u me:pw http://x",
        "docker run -e ORCHEO_POSTGRES_DSN=postgresql://x image",
    ],
)
def test_command_line_with_a_secret_is_found(line: str) -> None:
    assert _wrong(line) != []


@pytest.mark.parametrize(
    "line",
    [
        "psql service=owner -c 'SELECT 1'",
        "redis-cli CONFIG REWRITE",
        "curl -H @header http://127.0.0.1:9101/overview.json",
        "ORCHEO_LOG_FORMAT=json orcheo-dispatch worker",
        "docker run --env-file .env image",
    ],
)
def test_command_line_without_one_is_not(line: str) -> None:
    assert _wrong(line) == []
