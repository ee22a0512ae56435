"""Text that others chose, as it can be shown to people."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with every character that is none replaced by its escape."""
    if text.isprintable():
        return text
    return "".join(
        # A codec would be read from the disk at its first use, which a confined process cannot do.
        char if char.isprintable() else ascii(char)[1:-1]
        for char in text
    )


def cut(text: str, chars: int) -> str:
    """Return a text of at most `chars` characters, with an ellipsis where some are left out."""
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


def with_article(noun: str) -> str:
    """Return a noun with "a" or "an" before it."""
    return f"{'an' if noun[:1] in set('aeiou') else 'a'} {noun}"
