"""Text of anybody in the files of a report: Markdown and CSV, with nothing in it that acts."""

import re

from rpa_ray.terminal import printable

_NUMBER = r"-?\d[\d.,]*"
_MARKED_MEAN = rf"(?<![^\s(]){_NUMBER}\*[!?]?(?![^\s;,)])"
"""Nothing begins at the mark: it stands behind a number and before a space."""
_INTERVAL = rf"(?<!\S)\[(?:low|{_NUMBER}), (?:high|{_NUMBER}|-)\](?![^\s;,.)])"
"""No link: its address would have to follow at once."""
_INSIDE_A_WORD = r"(?<=[^\W_])_+(?=[^\W_])"
_KEPT_OR_ESCAPED = re.compile(
    rf"({_MARKED_MEAN}|{_INTERVAL}|{_INSIDE_A_WORD})|[\\`*_\[\]|~]|!(?=\[)|(?<!\S)#"
)

_BEGINS_A_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def escape_markdown(text: str) -> str:
    """Return text on one line that Markdown shows as it is: no table, link, image, HTML or style.

    An underscore inside a word, which begins nothing, stays as it is.
    """
    flat = printable(" ".join(text.split()))
    marked = _KEPT_OR_ESCAPED.sub(lambda found: found[1] or f"\\{found[0]}", flat)
    return marked.replace("&", "&amp;").replace("<", "&lt;")


def spreadsheet_text(entry: object) -> object:
    """Return an entry of a CSV file; text that a spreadsheet would run gets an apostrophe before.

    Numbers stay numbers, also where they are given as text. Control characters are escaped: some
    readers begin a row at a carriage return.
    """
    if not isinstance(entry, str):
        return entry
    text = printable(entry)
    if not text.startswith(_BEGINS_A_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def fenced(text: str) -> str:
    """Return text as a block of code that nothing in it can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{printable(text)}\n{fence}"
