"""Make text harmless to a terminal: what an agent wrote may not move the cursor or set the clipboard."""

import re
from typing import Final

_CONTROL: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDI: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_UNSAFE: Final = re.compile(f"[{_CONTROL}{_BIDI}\u2028\u2029\ud800-\udfff]")
_UNSAFE_OR_BREAK: Final = re.compile(f"[\t\n{_UNSAFE.pattern[1:]}")


def visible(text: str) -> str:
    """Show control and direction characters as escapes; tabs and line ends stay."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """Show control and direction characters as escapes, tabs and line ends too."""
    return _UNSAFE_OR_BREAK.sub(_escape, text)


def json_visible(text: str) -> str:
    """Do the same to JSON, which means the same afterwards: such characters are only found in strings."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()
