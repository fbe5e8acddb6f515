"""An SMTP server that takes messages as a mail server would, from whoever logs in."""

from __future__ import annotations

import base64
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message

USER, PASSWORD = "someone", "s3cretOfTheMailbox"


@dataclass(frozen=True, slots=True)
class Mail:
    """One message, with the addresses of its envelope."""

    sender: str
    recipients: list[str]
    message: Message

    @property
    def subject(self) -> str:
        """The subject, decoded and on one line."""
        from email.header import decode_header, make_header

        return " ".join(str(make_header(decode_header(self.message["Subject"]))).split())

    @property
    def text(self) -> str:
        """The text, decoded."""
        (part,) = [each for each in self.message.walk() if each.get_content_type() == "text/plain"]
        found = part.get_payload(decode=True)
        assert isinstance(found, bytes)
        return found.decode()


@dataclass(slots=True)
class Mailbox:
    """What arrived."""

    mails: list[Mail] = field(default_factory=list)
    refusals: int = 0
    """Logins with another password."""
    port: int = 0

    def subjects(self, part: str = "") -> list[str]:
        """Return the subjects that hold `part`, in order."""
        return [each.subject for each in list(self.mails) if part in each.subject]

    def url(self, password: str = PASSWORD) -> str:
        """Return its URL for Apprise, with the password of the user."""
        more = "from=orcheo@example.org&to=oncall@example.org&mode=insecure"
        return f"mailto://{USER}:{password}@127.0.0.1:{self.port}?{more}"


class _Session(socketserver.StreamRequestHandler):
    box: Mailbox

    def handle(self) -> None:
        sender, recipients = "", list[str]()
        self._say("220 mail.example.org ESMTP")
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self._say("250-mail.example.org", "250 AUTH PLAIN")
                case "AUTH":
                    self._log_in(rest.partition(" ")[2])
                case "MAIL":
                    sender = rest.partition("<")[2].partition(">")[0]
                    self._say("250 OK")
                case "RCPT":
                    recipients.append(rest.partition("<")[2].partition(">")[0])
                    self._say("250 OK")
                case "DATA":
                    self._say("354 end with a dot")
                    self.box.mails.append(Mail(sender, recipients, message_from_bytes(self._body())))
                    self._say("250 OK")
                case "QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("250 OK")

    def _log_in(self, given: str) -> None:
        if base64.b64decode(given).decode().split("\0")[1:] == [USER, PASSWORD]:
            self._say("235 OK")
        else:
            self.box.refusals += 1
            self._say("535 wrong user or password")

    def _body(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        return b"".join(lines)

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """Yield a server on a port of its own."""
    found = Mailbox()
    session = type("Session", (_Session,), {"box": found})
    with _Server(("127.0.0.1", 0), session) as server:
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join(10)
