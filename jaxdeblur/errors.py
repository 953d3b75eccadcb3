"""The one error that a user of the command line is meant to read, and the interrupt that no work may outlive."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names the thing (a file, a flag) and says how to mend it, or one such line for each fault
    of several. The command line prints it as it is and goes on with the next image; library callers catch it as a
    ``ValueError``.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(printable, lines)))


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the program as Ctrl-C does, also where Ctrl-C would end a part of the work only."""


def printable(text: str) -> str:
    """``text`` on one line that any terminal can show: names in files and of files may hold anything."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else ascii(letter)[1:-1] for letter in text)


def describe(error: BaseException, length: int = 200) -> str:
    """An error as ``Type: message`` on one line of at most about ``length`` characters."""
    words = " ".join(str(error).split())[:length]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
