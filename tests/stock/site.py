"""A server on this machine that workflows call: a web site, and a chat model as OpenAI's API has it."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

_FEED = """<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>
<item><title>One &amp; only</title><link>https://example.org/1</link>
<pubDate>Mon, 06 Jan 2020 10:00:00 GMT</pubDate></item>
<item><title>Two</title><link>https://example.org/2</link></item></channel></rss>"""
_KEPT_HEADERS = ("accept", "authorization", "content-type")
_ARGUMENTS = {
    "look_up": {"query": "tea"},
    "greet_user": {"username": "Ada"},
    "Decision": {"action": "route", "branch": "billing", "message": ""},
}


class Site:
    """Answers each workflow under a path of its own, and remembers what it was asked there."""

    def __init__(self, url: str, requests: dict[str, list[dict[str, Any]]]) -> None:
        self.url = url
        self._requests = requests

    def under(self, name: str) -> str:
        """Return the URL for one workflow."""
        return f"{self.url}/{name}"

    def taken(self) -> dict[str, list[dict[str, Any]]]:
        """Return the requests since the last call, by workflow, in order."""
        taken = dict(self._requests)
        self._requests.clear()
        return taken


@contextmanager
def site() -> Iterator[Site]:
    """Serve on a free port of 127.0.0.1."""
    requests: dict[str, list[dict[str, Any]]] = defaultdict(list)
    handler = type("Handler", (_Handler,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{server.server_port}", requests)
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    requests: ClassVar[dict[str, list[dict[str, Any]]]]

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        name, _, path = url.path.lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        headers = {key: self.headers[key] for key in _KEPT_HEADERS if key in self.headers}
        asked = {"method": self.command, "path": path, "query": url.query, "headers": headers, "body": body}
        self.requests[name].append(asked)
        match path:
            case "json":
                self._send(200, {"items": [1, {"two": None}], "text": "\u00e9", "asked": url.query})
            case "echo":
                self._send(201, {"echoed": body})
            case "moved":
                self._send(302, None, location=f"/{name}/json")
            case "feed.xml":
                self._send(200, _FEED, kind="application/rss+xml")
            case "v1/chat/completions":
                self._send(*_completion(json.loads(body)))
            case _:
                self._send(410, {"error": "gone"})

    def _send(self, status: int, body: Any, *, kind: str = "application/json", **headers: str) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        # Not `send_response`, which adds the date.
        self.send_response_only(status)
        for key, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


def _completion(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer as a chat model: call one tool after the other, then say what it was told last."""
    messages = request["messages"]
    if messages[-1]["content"] == "overload":
        return 400, {"error": {"message": "The model is overloaded.", "type": "server_error", "code": "overloaded"}}
    tools = [tool["function"]["name"] for tool in request.get("tools", [])]
    called = sum(message["role"] == "tool" for message in messages)
    if called < len(tools):
        # One at a time: of two that are called together, either may end first.
        function = {"name": tools[called], "arguments": json.dumps(_ARGUMENTS[tools[called]])}
        calls = [{"id": f"call_{called}", "type": "function", "function": function}]
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    elif request.get("response_format", {}).get("type") == "json_schema":
        message = {"role": "assistant", "content": json.dumps(_ARGUMENTS["Decision"])}
    else:
        message = {"role": "assistant", "content": f"{len(messages)} messages, the last: {messages[-1]['content']}"}
    reason = "tool_calls" if "tool_calls" in message else "stop"
    return 200, {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": f"{request['model']}-2020-01-01",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
