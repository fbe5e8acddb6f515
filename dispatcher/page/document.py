"""The status page as one HTML document, with its style, its script and a content security policy."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from orcheo_dispatch.shared.health.routes import Answer

# Headers of every response of the page's routes; the page itself allows its own style, script and requests.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_document() -> Answer:
    """Return the page. It is the same for all requests, so it is created once, at the start."""
    style, script = _read("page.css"), _read("page.js")
    body = _read("page.html").replace("/* page.css */", style).replace("/* page.js */", script)
    # The hashes allow only this style and this script; injected ones are ignored. Trusted Types keep the script from
    # creating HTML from a text.
    policy = (
        f"{HEADERS['Content-Security-Policy']}; style-src {_source(style)}; script-src {_source(script)}; "
        "connect-src 'self'; img-src data:; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return Answer(body.encode(), "text/html; charset=utf-8", headers={**HEADERS, "Content-Security-Policy": policy})


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
