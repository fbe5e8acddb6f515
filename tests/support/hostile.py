"""Texts that a client may choose for a name, a label, a reason or an error, and what none of them may do."""

from __future__ import annotations

import unicodedata

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]52;c;aGk=\x07 \x9b2J \x90q\x9c",
    "[bold red]markup[/] [/] [link=http://evil.example]here[/link] \\[x] :skull:",
    "<img src=x onerror=alert(1)> &lt;b&gt; <script>",
    "\u202eexe.txt \u2066\u2069 \u200f\u200b\u200d\ufeff\u2060 \u0627\u0644\u0639",
    "line\nforged INFO run_begun\r\nlast\rover\x0b\x0c\x85\u2028\u2029\x1c",
    "\t\x00\x08\x7f \ud800 \udfff\ud800 \ue000 \U000e0041 \u3164\u115f\u2800\ufe0f",
    "\u3042" * 300 + " " + "x" * 5000,
    "a" + "\u0301" * 200 + "\u0489" * 50,
    "\\",
    "[/",
)
"""Escape sequences, markup, HTML, marks of direction and width, line breaks, what is no character, length, marks."""

STORABLE = tuple(text.encode("utf-8", "replace").decode().replace("\x00", "") for text in HOSTILE)
"""The same, as far as Postgres stores it."""

_SEEN_AS_NOTHING = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0\ufe0f")


def does_harm(text: str) -> list[str]:
    """Return the characters of an output that a terminal may obey or that show as nothing; line breaks are its own."""
    found, marks = [], 0
    for character in text.replace("\n", ""):
        kind = unicodedata.category(character)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if (kind[0] == "C" or kind in {"Zl", "Zp"} or character in _SEEN_AS_NOTHING or marks > 3) and kind != "Zs":
            found.append(f"U+{ord(character):04X}")
    return found
