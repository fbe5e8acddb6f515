"""Redaction: no secret leaves in any form, through our logging and the errors of libraries, and in linear time."""

from __future__ import annotations

import base64
import contextlib
import html
import http.client
import json
import logging
import random
import re
import shlex
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import psycopg
import pytest
import redis
import yaml
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from kombu.connection import Connection
from psycopg.conninfo import make_conninfo

from orcheo_dispatch.shared.broker.app import broker_errors
from orcheo_dispatch.shared.database.connections import database_errors
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.logs import library as library_logs
from orcheo_dispatch.shared.logs import setup as logs
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.logs.secret_names import is_secret, secrets_in, secrets_of_environment
from orcheo_dispatch.shared.process.entry import fail, unexpected
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.plain import plain
from orcheo_dispatch.shared.text.redaction import MIN_CHARACTERS, error_line, keep_secret, redact
from orcheo_dispatch.worker.executor.error_text import MAX_CHARACTERS, error_text

TOKEN = "tok/en+of=16 chärs"
_PRINTED: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda secret: repr(secret.encode("utf-8", "surrogatepass")),
    "repr of repr": lambda secret: repr(repr(secret)),
    "json": json.dumps,
    "json in unicode": lambda secret: json.dumps(secret, ensure_ascii=False),
    "json in json": lambda secret: json.dumps(json.dumps({"x": secret})),
    "percent": lambda secret: quote(secret, safe="", errors="surrogatepass"),
    "percent but /": lambda secret: quote(secret, errors="surrogatepass"),
    "percent in small letters": lambda secret: _small(quote(secret, safe="", errors="surrogatepass")),
    "percent of percent": lambda secret: quote(quote(secret, safe="", errors="surrogatepass"), safe=""),
    "form": lambda secret: quote_plus(secret, errors="surrogatepass"),
    "form in percent": lambda secret: quote(quote_plus(secret, errors="surrogatepass"), safe=""),
    "json in percent": lambda secret: quote(json.dumps(secret), safe=""),
    "repr in percent": lambda secret: quote(repr(secret), safe="", errors="surrogatepass"),
    "repr of bytes in json": lambda secret: json.dumps(repr(secret.encode("utf-8", "surrogatepass"))),
    "json in repr of bytes": lambda secret: repr(json.dumps(secret, ensure_ascii=False).encode()),
    "html": html.escape,
    "html of html": lambda secret: html.escape(html.escape(secret)),
    "json in html": lambda secret: html.escape(json.dumps(secret)),
    "html in ascii": lambda secret: secret.encode("ascii", "xmlcharrefreplace").decode(),
    "shell": shlex.quote,
    "shell in repr": lambda secret: repr(shlex.quote(secret)),
    "shell in repr of bytes": lambda secret: repr(shlex.quote(secret).encode()),
    "shell in double quotes": lambda secret: '"' + re.sub(r'([$`"\\!])', r"\\\1", secret) + '"',
    "shell with backslashes": lambda secret: re.sub(r"([^A-Za-z0-9_./-])", r"\\\1", secret),
    "shell in octal": lambda secret: f"$'{_octal(secret)}'",
    "octal in repr": lambda secret: repr(_octal(secret)),
    "sql": lambda secret: "'" + secret.replace("'", "''") + "'",
    "sql in repr": lambda secret: repr("'" + secret.replace("'", "''") + "'"),
    "name in sql": lambda secret: '"' + secret.replace('"', '""') + '"',
    "conninfo": lambda secret: make_conninfo(password=secret),
    "yaml": lambda secret: yaml.safe_dump(secret, width=10**6),
    "hexadecimal": lambda secret: secret.encode().hex(),
    "bytea": lambda secret: "\\x" + secret.encode().hex(),
    "hexadecimal in capitals": lambda secret: secret.encode().hex().upper(),
    "backslashreplace": lambda secret: secret.encode("ascii", "backslashreplace").decode(),
    "unicode_escape": lambda secret: secret.encode("unicode_escape").decode(),
    "surrogateescape": lambda secret: repr(secret.encode().decode("ascii", "surrogateescape")),
    "read as latin-1": lambda secret: repr(secret.encode().decode("latin-1")),
    "shown on a terminal": plain,
    "lines of base64": lambda secret: base64.encodebytes(b"user:" * 11 + secret.encode()).decode(),
    "lines of base64 in repr": lambda secret: repr(base64.encodebytes(b"x" * 50 + secret.encode())),
    "Basic authentication": lambda secret: base64.b64encode(f"me:{secret}".encode()).decode(),
    "percent in repr of bytes": lambda secret: repr(quote(secret, safe="/:", errors="surrogatepass").encode()),
    "url": lambda secret: f"redis://me:{quote(secret, safe='', errors='surrogatepass')}@host:6379/0",
    "word of an assignment": lambda secret: f"x%3D{quote(secret, safe='', errors='surrogatepass')}",
    "after a line break in repr": lambda secret: repr(f"a\n{secret}\nb"),
}
_BASE64: dict[str, Callable[[str], str]] = {
    "base64": str,
    "base64 for URLs": lambda text: text.replace("+", "-").replace("/", "_"),
    "base64 in a URL": lambda text: quote(text, safe=""),
}
_SECRETS = st.text(st.characters(codec="utf-8"), min_size=MIN_CHARACTERS, max_size=60) | st.from_regex(
    r"\A[A-Za-z0-9+/=._~:@%&'\"\\ -]{8,64}\Z"
)
_ODD_SECRETS = st.text(
    st.sampled_from("'\"\\%&;#$`!+/=@:<> \0\x01\t\x1b\x7f\x85\xa0\u2028\ufeffé😀\u017f0afnux25"),
    min_size=MIN_CHARACTERS,
    max_size=20,
)
"""Of characters that are quoted or encoded somewhere, and of those that quoting is made of."""
_AROUND = (
    *(("", ""), ("Invalid header ", ": give another"), ("x%3D", "%26y"), ("x%253D", "%2526y"), ('a"', '"b')),
    *(("a\\n", "\\nb"), ("\\x00", "\\x00b"), ("\\u00e9", "\\u00e9b"), ("\\U0001f600", "\\U0001f600b")),
    *(("&quot;", "&quot;b"), ("\\012", "\\012b"), ("é", "é"), ("_", "_")),
)
_QUOTES_AROUND = {
    "lines of base64": 100,
    "lines of base64 in repr": 100,
    "json in json": 30,
    "conninfo": 30,
    "url": 30,
    "json in html": 30,
}
_effort = effort(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    keep_secret()


def _small(text: str) -> str:
    parts = text.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def _octal(secret: str) -> str:
    """Print bytes as C does, bash in `$'...'`, and Postgres' `escape` format likewise."""
    short = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x27: "\\'", 0x5C: "\\\\"}
    return "".join(
        short.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}") for byte in secret.encode()
    )


def _kept(secret: str) -> str:
    """Keep the secret as it comes from an environment, and return what of it there is to hide."""
    kept = secret.strip()
    # Of several lines each is a secret of its own; that is tried by itself.
    assume(len(kept) >= MIN_CHARACTERS and kept.splitlines() == [kept])
    assume(len(set(kept)) > 3)
    keep_secret(secret)
    return kept


@pytest.mark.parametrize("form", _PRINTED)
@_effort
@example(secret="token-with-newline\n")
@example(secret="two\\\\backslashes\\")
@example(secret="%25%2525percent")
@example(secret="a\"quote'and\ttab")
@example(secret="&amp;&lt;entities;")
@example(secret='0000012"')
@example(secret="0000012'")
@example(secret="0000012\\")
@example(secret="\"0000012'")
@example(secret="0'0\"0\\1'\"'2")
@example(secret="nul\0escape\x1bdelete\x7f")
@example(secret="pass word\xa0blanks\u2028")
@example(secret="ключ-пароля")
@example(secret="😀grin-\x85next")
@example(secret="\ud83dlone-surrogate")
@given(secret=_SECRETS | _ODD_SECRETS)
def test_secret_is_hidden_in_each_form(form: str, secret: str) -> None:
    kept = _kept(secret)
    try:
        printed = _PRINTED[form](kept)
    except (UnicodeEncodeError, psycopg.ProgrammingError):
        # A lone surrogate, or NUL in a conninfo: this form has no way to print it.
        return
    for before, after in _AROUND:
        hidden = redact(f"{before}{printed}{after}")
        assert "***" in hidden
        assert kept not in hidden
        assert printed not in hidden
        # Neither is half of it left: quotes, a prefix and the words around are.
        assert len(hidden) <= len(before) + len(after) + _QUOTES_AROUND.get(form, 12)


@pytest.mark.parametrize("form", _BASE64)
@_effort
@given(secret=_SECRETS, before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_secret_is_hidden_in_base64_wherever_it_stands_in_it(
    form: str, secret: str, before: bytes, after: bytes
) -> None:
    raw = _kept(secret).encode()
    text = base64.b64encode(before + raw + after).decode()
    # The characters that hold bits of the secret and of nothing else.
    own = text[-(-len(before) * 8 // 6) : (len(before) + len(raw)) * 8 // 6]
    hidden = redact(f"Basic {_BASE64[form](text)} refused")
    assert "***" in hidden
    assert not any(_BASE64[form](own[at : at + 6]) in hidden.replace("***", " ") for at in range(len(own) - 5))


@_effort
@given(secret=_SECRETS, before=st.integers(0, 60), limit=st.integers(0, 60))
def test_cut_leaves_no_part_of_a_secret(secret: str, before: int, limit: int) -> None:
    kept = _kept(secret)
    assume("-" not in kept[:4] and "*" not in kept and "." not in kept and " " not in kept)
    hidden = redact(f"{'-' * before}{repr(kept)[1:-1]}{'-' * 100}", limit).removesuffix(" ...")
    assert hidden == "-" * min(before, limit) + ("***" if limit > before else "") + "-" * max(
        0, limit - before - len(repr(kept)[1:-1])
    )


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ('{"password": "hunter2 x", "a": 1}', '{"password": ***, "a": 1}'),
        ('"{\\"password\\": \\"hunter2\\"}"', '"{\\"password\\": ***}"'),
        ("{'Authorization': b'Bearer hunter2'}", "{'Authorization': ***}"),
        ("[('Authorization', 'Bearer hunter2')]", "[('Authorization', ***)]"),
        ("Invalid header value b'Bearer hunter2\\n'", "Invalid header value b'Bearer ***\\n'"),
        ("https://hunter2@example.org/x", "https://***@example.org/x"),
        ("ORCHEO_VAULT_ENCRYPTION_KEY=hunter2", "ORCHEO_VAULT_ENCRYPTION_KEY=***"),
        ('password="hunter2 that is cut', "password=***"),
        ("max_tokens=5, keyboard: on, the secret is out", "max_tokens=5, keyboard: on, the secret is out"),
    ],
)
def test_value_after_a_name_is_hidden_however_it_is_quoted(text: str, hidden: str) -> None:
    assert redact(text) == hidden


_FRAGMENTS = (
    *("password", "token", "api_key", "https", "hunter2", "kept-secret-value", "Bearer ", "bearer\u2003", "Zm9v" * 15),
    *("://", "\\n", "\r\n", "b'", *"@:=,'\"\\a9.-/é \t\u00a0"),
)


@effort(max_examples=400, deadline=None)
@given(fragments=st.lists(st.sampled_from(_FRAGMENTS), max_size=8))
def test_quick_search_overlooks_nothing_that_the_rules_find(fragments: list[str]) -> None:
    keep_secret("kept-secret-value", base64.b64decode("Zm9v" * 15).decode())
    text = "".join(fragments)
    # Text that is cut is searched by all rules.
    searched = redact(text + " " * 10, len(text)).removesuffix(" ...")
    assert redact(text) == searched


def test_part_of_an_overlong_secret_is_hidden_as_well() -> None:
    """A key in one line, or a whole JSON text: of its middle and its end nothing may be left either."""
    for length in (1021, 1037, 2056):
        secret = "".join(random.Random(length).choices("abcdefghijkl 0123456789\"'{}:é", k=length)).strip()
        keep_secret(secret)
        for printed in (secret, repr(secret), json.dumps(secret), quote(secret), secret.encode().hex()):
            assert len(redact(f"<{printed}>")) < 20
        assert len(redact(base64.encodebytes(b"user:" + secret.encode()).decode())) < 30


def test_other_secrets_are_kept_while_texts_are_redacted() -> None:
    """A thread that redacts sees the secrets of before or of after, never none of them."""
    keep_secret("secret-of-always")
    seen, stop = [], threading.Event()

    def redacting() -> None:
        while not stop.is_set():
            seen.append(redact("secret-of-always"))

    thread = threading.Thread(target=redacting)
    thread.start()
    try:
        for number in range(50):
            keep_secret("secret-of-always", f"secret-number-{number}")
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {"***"}


_LONG = 48_000


_UNITS = (
    *("7", "=", "a=", "//", "user:", "postgres://", "'", '"', "QUJD", "é", "😀", "\u202e", "\0", "\t", "\r\n", "+"),
    *("http://", "https://:", "token: ", "token\\", "token=bearer ", "authorization: basic  ", "api_", "private_key"),
    *(
        "&",
        "&#",
        "&amp",
        "&amp;",
        "%",
        "%2",
        "%5C",
        "%255c",
        "\\x",
        "\\u00",
        "\\'",
        "'\"'\"'",
        "==",
        "A" * 76 + "\n",
        "_",
    ),
    *("A" * 76 + "\\n", "ab" * 30 + "\\\\\\\\", "62626262", "secret", "passwd='\\", "x,\n", "password =\n\n"),
    *("a", "a.b-", "a://b:", "a://:", "http://a", "token", 'token="', "token='x ", "token ", "bearer ", "token', '"),
    *("\\", "%25", "&#0000", "&#x0", "://", ":", "@", "A", "\n", " ", "p%40", "p\\u0040", 'token=b\\\\\\"'),
)


@pytest.mark.parametrize("unit", _UNITS)
def test_redaction_takes_time_linear_in_the_text(unit: str) -> None:
    """The old patterns took 15 s for 150,000 letters, with the interpreter's lock held."""
    keep_secret(TOKEN, "p@ssword-of-16-chars", "\\\\\\\\back\\\\slash", "AAAAAAAAAAAAAAAAAAAAB", "%%%%%%%%%25")
    seconds = [_seconds(unit * (size // len(unit))) for size in (_LONG // 8, _LONG)]
    assert seconds[1] < 0.5, f"{_LONG} characters took {seconds[1]:.1f} s"
    # Eight times as long; quadratic would be 64 times.
    assert seconds[1] < 24 * seconds[0] + 0.05


@pytest.mark.parametrize("seed", range(40))
def test_redaction_takes_time_linear_in_whatever_text(seed: int) -> None:
    """Secrets that are full of quotes, and texts made of halves of their forms: the most that there is to try again.

    Four times as long a text takes less than nine times as long; quadratic would be sixteen.
    """
    chosen = random.Random(seed)
    alphabet = chosen.sample([*"'\"\\%&;#+ =a0nxu25", "é", "😀"], chosen.choice([2, 3, 5, 12]))
    secret = "".join(chosen.choices(alphabet, k=chosen.choice([8, 40, 200])))
    keep_secret(secret, secret[: len(secret) // 2] * 2)
    halves = []
    for form in chosen.sample(sorted(_PRINTED), 6):
        with contextlib.suppress(UnicodeEncodeError):
            printed = _PRINTED[form](secret)
            halves.append(printed[: chosen.randint(1, len(printed))])
    unit = "".join(chosen.choices([*halves, *_UNITS], k=chosen.choice([1, 2, 3, 6])))
    seconds = [_seconds((unit * (size // len(unit) + 1))[:size]) for size in (5_000, 20_000)]
    assert seconds[1] < 9 * seconds[0] + 0.05, f"{unit!r} takes {seconds} s"
    assert seconds[1] < 1


def _seconds(text: str) -> float:
    best = float("inf")
    for _ in range(2):
        began = time.thread_time()
        redact(text)
        best = min(best, time.thread_time() - began)
    return best


def test_last_resort_of_the_command_prints_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-24-letters-or-more\n")
    monkeypatch.setenv("ORCHEO_LOG_LEVEL", " debug")
    error = _raised(_urllib_header, "sk-of-24-letters-or-more")
    with pytest.raises(SystemExit) as ended:
        unexpected(error)
    written = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in written
    assert written.splitlines()[-1].startswith("orcheo-dispatch: unexpected ValueError at ")
    assert "sk-of-24" not in written
    monkeypatch.delenv("ORCHEO_LOG_LEVEL")
    with pytest.raises(SystemExit):
        unexpected(error)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_error_of_the_command_prints_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHEO_SERVICE_TOKEN", "token-of-24-letters-or-m")
    with pytest.raises(SystemExit) as ended:
        fail(DispatchError("it said b'token-of-24-letters-or-m\\n'"))
    assert (ended.value.code, capsys.readouterr().err) == (1, "orcheo-dispatch: it said b'***\\n'\n")


def test_error_of_a_run_is_cut_before_it_is_redacted() -> None:
    keep_secret(TOKEN)
    text = error_text(ValueError("x" * (MAX_CHARACTERS - 4) + TOKEN + "y" * 50_000_000))
    assert text == "x" * (MAX_CHARACTERS - 4) + "*** ..."


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real logging of a process whose settings, credentials and environment hold secrets."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)
    monkeypatch.setattr("threading.excepthook", threading.excepthook)
    monkeypatch.setattr(library_logs, "_level", None)
    yield
    logging.captureWarnings(False)
    log.remove()
    log.configure(patcher=lambda _: None)
    root.handlers[:], root.level = handlers, level


def _urllib_header(secret: str) -> None:
    request = urllib.request.Request("http://127.0.0.1:1/", headers={"Authorization": f"Bearer {secret}\n"})
    with urllib.request.urlopen(request, timeout=1):
        pass


def _urllib_url(secret: str) -> None:
    http.client.HTTPConnection("127.0.0.1", 1).putrequest("GET", f"/?key={secret} x\n")


def _httpx(secret: str) -> None:
    with httpx.Client(trust_env=False) as client:
        client.get("http://127.0.0.1:1/", headers={"X-Key": f"{secret}\n"})


def _httpx_url(secret: str) -> None:
    httpx.URL(f"http://me:{secret}@host:port/")


def _psycopg_dsn(secret: str) -> None:
    psycopg.connect(f"postgresqlx://me:{secret}@127.0.0.1:1/db", connect_timeout=1)


def _psycopg_option(secret: str) -> None:
    psycopg.connect(f"host=127.0.0.1 port=1 {secret}=x", connect_timeout=1)


def _redis(secret: str) -> None:
    redis.Redis.from_url(f"rediss://:x@127.0.0.1:1/0?ssl_cert_reqs={quote(secret, safe='')}").ping()


def _redis_answer(secret: str) -> None:
    raise redis.ResponseError(f"unknown command 'AUTH', with args beginning with: '{secret}'")


def _kombu(secret: str) -> None:
    with Connection(f"{secret}://host") as connection:
        connection.ensure_connection(max_retries=1, timeout=1)


_LIBRARIES = [
    *(_urllib_header, _urllib_url, _httpx, _httpx_url, _psycopg_dsn, _psycopg_option, _redis, _redis_answer, _kombu)
]


def _raised(call: Callable[[str], None], secret: str) -> BaseException:
    try:
        call(secret)
    except Exception as error:
        return error
    raise AssertionError(f"{call.__name__} raised nothing")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("call", _LIBRARIES)
@pytest.mark.parametrize("secret", ["tok/en+with=odd:chars", "plainsecretof24letters00", "sp ace\"quote'back\\slash"])
@pytest.mark.usefixtures("logged")
def test_no_text_of_a_library_reaches_a_log_with_a_secret(
    call: Callable[[str], None],
    form: str,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ORCHEO_SERVICE_TOKEN", "another-one-of-24-letters")
    monkeypatch.setenv("OPENAI_API_KEY", f" {secret}\r\n")
    logs.configure(Settings.load(postgres_dsn="postgresql://x/y", log_format=form))
    error = _raised(call, secret)
    log.warning("broker_unavailable", reason=error_line(error))
    logging.getLogger("kombu").error("gave up: %s", error)
    logging.getLogger("psycopg.pool").warning("error connecting: %r", error)
    for translate in (broker_errors, database_errors):
        # What is not of this server's library comes through as it is.
        with pytest.raises((DispatchError, type(error))) as raised, translate():
            raise error
        if isinstance(raised.value, DispatchError):
            log.error("failed", reason=str(raised.value))
    written = capsys.readouterr().err
    assert len(written.splitlines()) >= 3
    for shown in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe=""), quote(secret)):
        assert shown not in written


def test_variables_count_as_secret_by_their_names() -> None:
    for name in (
        *("ORCHEO_VAULT_ENCRYPTION_KEY", "ORCHEO_SERVICE_TOKEN", "ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN"),
        *("ORCHEO_AUTH_JWT_SECRET", "ORCHEO_AUTH_TRUSTED_PROXY_SECRET", "ORCHEO_CHATKIT_TOKEN_SIGNING_KEY"),
        *("ORCHEO_CHATKIT_S3_SECRET_ACCESS_KEY", "ORCHEO_CHATKIT_S3_ACCESS_KEY_ID", "ORCHEO_SMTP_PASSWORD"),
        *("ORCHEO_APP_GATEWAY_SECRET", "ORCHEO_BROKER_TOKEN", "ORCHEO_POSTGRES_PASSWORD", "ORCHEO_AUTH_JWKS_STATIC"),
        *("OPENAI_API_KEY", "PGPASSWORD", "GITHUB_PAT", "SLACK_CLIENT_SECRET", "apikey", "AWS_ACCESS_KEY_ID"),
    ):
        assert is_secret(name), name
    for name in ("PWD", "OLDPWD", "ORCHEO_AUTH_SERVICE_TOKEN_BACKEND", "ORCHEO_VAULT_TOKEN_TTL_SECONDS", "HOME"):
        assert not is_secret(name), name


def test_secrets_are_found_in_lists_urls_and_dsns() -> None:
    environment = {
        "ORCHEO_AUTH_TOKENS": "first-of-them,second-one",
        "GOOGLE_CREDENTIALS": '{"private_key": "line one of it\\nline two of it"}',
        "SOME_DATABASE": "mysql://me:p%40ssword@host/db",
        "OTHER": "host=x password='hunter 2 and more' dbname=y",
        "SHORT": "redis://me:pw@host",
    }
    found = set(secrets_of_environment(environment))
    assert {"first-of-them", "second-one", "p@ssword", "hunter 2 and more", "me:pw"} <= found
    keep_secret(*found)
    assert "of it" not in redact("cut: line two of it")
    assert secrets_in("postgresql://me:p%40w@h/db?sslpassword=other") == ["p@w", "other", "p@w", "me:p@w", "other"]
    assert secrets_in("host=h password=pw-of-conninfo") == ["pw-of-conninfo", "pw-of-conninfo"]
    assert secrets_in("a-token=") == ["a-token="]


@pytest.mark.usefixtures("logged")
def test_credentials_are_secrets_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "ORCHEO_VAULT_ENCRYPTION_KEY").write_text("vault-key-of-a-file\n")
    logs.configure(
        Settings.load(postgres_dsn="host=h password=dsn-of-settings", listen_dsn="host=h password=of-listen")
    )
    log.info("odd", text="vault-key-of-a-file", other=["dsn-of-settings"], third={"x": "of-listen"})
    written = capsys.readouterr().err
    assert "odd" in written
    assert not any(secret in written for secret in ("vault-key", "dsn-of", "of-listen"))
