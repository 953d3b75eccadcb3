"""What the command lines of several experiments share. No command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from jaxdeblur.errors import InputError, describe

# As a shell gives it.
_INTERRUPTED = 130


def start(main: Callable[[Sequence[str]], int], *, interrupted: str = "interrupted") -> NoReturn:
    """Runs this process's command line and ends the process with its exit status, 130 after Ctrl-C.

    Args:
      main: takes the program's name and its arguments, returns the exit status.
      interrupted: told after Ctrl-C.
    """
    try:
        sys.exit(main(sys.argv))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(_INTERRUPTED)


def run_command(argv: Sequence[str], values: flags.FlagValues, about: str | None, work: Callable[[], int]) -> int:
    """Parses a command line of flags alone and does its work; what is wrong with the input is told in one line.

    Args:
      argv: the program's name and its arguments.
      values: the flags, unparsed; ``--help`` joins them.
      about: printed before the flags for it.
      work: called once ``values`` are parsed; returns the exit status.

    Returns:
      The exit status: 1 where the command line or the input is wrong.
    """
    flags.DEFINE_boolean("help", False, "Print this and stop.", short_name="h", flag_values=values)
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
    except OSError as error:
        print(describe(error), file=sys.stderr)
    return 1
