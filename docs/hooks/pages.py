"""MkDocs hooks: pages that are files elsewhere in the repository, pages made of the code, and the links between all.

Sources keep the links that a code host follows. Here each link to a file that has a page becomes a link to that page,
and one to a file that has none becomes plain text. A link to a file that does not exist stays, and the strict build
fails on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import reference
from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
MADE: dict[str, Callable[[], str]] = {
    "reference/commands.md": reference.commands,
    "reference/settings.md": reference.settings,
    "decisions/index.md": lambda: reference.decisions(ROOT / "docs/decisions"),
}

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_NESTED = re.compile(r"^  (?=- )", re.MULTILINE)
_INDENT = 3
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


class _ListsAsOnACodeHost(Extension):  # type: ignore[misc]
    """What belongs to an item is indented as far as its text, 3 under `1.`; Markdown for Python asks for 4."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.tab_length = _INDENT
        md.build_parser()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have lists read as in the sources. First of all extensions: it makes the parser anew, without those of others."""
    config.markdown_extensions.insert(0, _ListsAsOnACodeHost())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in `docs`."""
    for source, page in ELSEWHERE.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of one page at the pages of the site."""
    del config
    name = page.file.src_uri
    if name in MADE:
        return markdown
    source = {page: source for source, page in ELSEWHERE.items()}.get(name, f"docs/{name}")

    def point(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), link["path"]))  # noqa: PTH118, PTH120
        there = _page_of(target, files)
        if there is not None:
            path = os.path.relpath(there, os.path.dirname(name))  # noqa: PTH120
            return f"{link['image']}[{link['text']}]({path}{link['anchor'] or ''})"
        return link["text"] if (ROOT / target).exists() else link[0]

    nested = _outside_code(_NESTED, lambda _: " " * _INDENT, markdown)
    return _outside_code(_LINK, point, nested)


def _outside_code(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], markdown: str) -> str:
    code = [match.span() for match in _CODE.finditer(markdown)]

    def unless_code(match: re.Match[str]) -> str:
        return match[0] if any(start <= match.start() < end for start, end in code) else replace(match)

    return pattern.sub(unless_code, markdown)


def _page_of(target: str, files: Files) -> str | None:
    """Return the file of the site that shows `target`, a path in the repository; None where there is none."""
    page = ELSEWHERE.get(target, target.removeprefix("docs/"))
    known = target in ELSEWHERE or target.startswith("docs/")
    if known and (ROOT / target).is_dir():
        page += "/index.md"
    return page if known and files.get_file_from_path(page) else None
