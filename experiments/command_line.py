"""What the command lines of several experiments share. No command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import flags

from jaxdeblur.errors import InputError


def run_command(argv: Sequence[str], values: flags.FlagValues, about: str | None, work: Callable[[], int]) -> int:
    """Parses a command line of flags alone and does its work; what is wrong with the input is told in one line.

    Args:
      argv: the program's name and its arguments.
      values: the flags, unparsed, ``help`` among them.
      about: printed before the flags for ``--help``.
      work: called once ``values`` are parsed; returns the exit status.

    Returns:
      The exit status: 1 where the command line or the input is wrong.
    """
    try:
        _, *unexpected = values(list(argv))
        if values.help:
            print(about, values.get_help(), sep="\n")
            return 0
        if unexpected:
            raise InputError(f"unexpected argument {unexpected[0]!r}: give flags only, see --help")
        return work()
    except (InputError, flags.Error) as error:
        print(error, file=sys.stderr)
        return 1
