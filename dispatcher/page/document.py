"""The status page as files: one HTML document with a content security policy, its style and its script's modules."""

from __future__ import annotations

from importlib.resources import files

from orcheo_dispatch.dispatcher.page.answers import HEADERS
from orcheo_dispatch.shared.health.probe import ASSETS, PAGE
from orcheo_dispatch.shared.health.routes import Answer, Route

# Only files of this server: a script or a style that was injected into the page is ignored. Trusted Types keep the
# script from creating HTML from a text.
_POLICY = (
    f"{HEADERS['Content-Security-Policy']}; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_DOCUMENT = "page.html"


def document_routes() -> dict[str, Route]:
    """Return the routes of the files. They are the same for all requests and hold nothing of any run."""
    document = Answer(
        _read(_DOCUMENT), "text/html; charset=utf-8", headers={**HEADERS, "Content-Security-Policy": _POLICY}
    )
    assets = {
        f"{ASSETS}{name}": Answer(_read(name), _KINDS[name.rpartition(".")[2]], headers=HEADERS) for name in _names()
    }
    return {path: _serving(answer) for path, answer in {PAGE: document, **assets}.items()}


def _serving(answer: Answer) -> Route:
    return lambda _: answer


def _names() -> list[str]:
    found = files(__package__).joinpath("assets").iterdir()
    return sorted(each.name for each in found if each.name.endswith((".css", ".js")))


def _read(name: str) -> bytes:
    return files(__package__).joinpath("assets", name).read_bytes()
