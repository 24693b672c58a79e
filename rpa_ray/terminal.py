"""Text of users, files and models on a terminal: shown as it is, never acted on."""

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and line feed, which move a cursor or command a terminal; marks
that turn the direction of what follows; and halves of characters, which no file can hold."""


_WIDE = 10_000
"""Characters of a line that nobody reads on a terminal."""


def printable(text: str) -> str:
    r"""Return text with each character that is not to be printed as its escape, such as `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str, style: str = "") -> Text:
    """Return text for a table or a line: rich reads no markup in it, a terminal no command."""
    return Text(printable(text), style=style)


def say(console: Console, text: str, *, mark: str = "", style: str = "") -> None:
    """Print text as it is, without line breaks of our own.

    Args:
        console: Where to.
        text: Of anybody.
        mark: Word before it, such as `error`.
        style: Of the mark; where there is none, of the text.
    """
    parts = [plain(f"{mark} ", style), plain(text)] if mark else [plain(text, style)]
    console.print(Text.assemble(*parts), soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table; where there is no terminal nothing in it, above or below is broken.

    Args:
        console: Where to.
        table: Its title and caption are texts.
    """
    if console.is_terminal:
        console.print(table)
        return
    title, caption = (Text.assemble(text or "").plain for text in (table.title, table.caption))
    table.title = table.caption = None
    if title:
        say(console, title)
    Console(file=console.file, width=_WIDE).print(table)
    if caption:
        say(console, caption)
