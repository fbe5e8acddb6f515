"""The documentation site: built strictly, whole, and with nothing fetched from elsewhere."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.shared.settings.model import variables

ROOT = Path(__file__).parents[2]
_TAG = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*>")
_FETCHED = re.compile(r"""(?:src|href|srcset)=["']?(?P<address>(?:https?:)?//[^"'\s>]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, and return its folder."""
    folder = tmp_path_factory.mktemp("site")
    built = _build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_setting_is_in_the_reference(site: Path) -> None:
    page = _text(site / "reference/settings.html")
    headings = set(re.findall(r'<h2 id="[^"]*"><code>([A-Z_]+)</code>', page))
    assert headings == set(variables())


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = _text(site / "reference/commands.html")
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        assert f"<code>orcheo-dispatch {name}</code>" in page
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in page, f"{name} {option}"


def test_every_page_is_there(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    docs = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert docs | {"index", "runbook", "contributing", "changelog", "decisions/index"} <= pages


def test_steps_of_a_list_stay_one_list_around_their_code(site: Path) -> None:
    install = _text(site / "runbook.html").split('id="install"')[1].split('id="see-how-it-is"')[0]
    assert install.count("<ol>") == 1
    assert install.count("<li>") == 10


def test_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = {
        (path.name, address["address"])
        for path in site.rglob("*.html")
        for tag in _TAG.findall(path.read_text(encoding="utf-8"))
        for address in _FETCHED.finditer(tag)
    }
    assert fetched == set()
    assert not [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?https?:", path.read_text())]


def test_dead_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[there](security.md) and [gone](not-there.md)\n")
    (tmp_path / "docs/security.md").write_text("[no such heading](index.md#nowhere)\n")
    rules = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("validation:")[1].split("theme:")[0]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\nvalidation:{rules}\nplugins: []\n")
    built = _build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode == 1
    assert "'not-there.md'" in built.stderr
    assert "'index.md#nowhere'" in built.stderr


def _build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _text(page: Path) -> str:
    return html.unescape(page.read_text(encoding="utf-8"))
