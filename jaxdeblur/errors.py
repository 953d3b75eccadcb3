"""The one error that a user of the command line is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names the thing (a file, a flag) and says how to mend it. The command line prints it
    as it is and goes on with the next image; library callers catch it as a ``ValueError``.
    """
