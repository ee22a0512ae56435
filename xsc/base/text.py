"""Text that others chose, as it can be shown to people."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with every character that is none replaced by its escape.

    A byte of a file's name that is not UTF-8 is shown as `\\xff`.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how `os.fsdecode` writes such a byte
        return f"\\x{ord(char) - 0xDC00:02x}"
    # A codec would be read from the disk at its first use, which a confined process cannot do.
    return ascii(char)[1:-1]


def cause(fault: OSError | UnicodeError) -> str:
    """Return why a file could not be read, in words and without numbers."""
    if isinstance(fault, UnicodeError):
        return "it is not UTF-8 text"
    return (fault.strerror or str(fault)).lower()


def cut(text: str, chars: int) -> str:
    """Return a text of at most `chars` characters, with an ellipsis where some are left out."""
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


def count_of(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def with_article(noun: str) -> str:
    """Return a noun with "a" or "an" before it."""
    return f"{'an' if noun[:1] in set('aeiou') else 'a'} {noun}"
