"""Decoding files from strangers, in which anything may stand."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import stat
import threading
import warnings
from collections.abc import Iterator

from jaxdeblur.errors import InputError, describe

# Of libraries that decode files: what they say of a damaged one, our one line says.
_TALKATIVE = ("PIL", "imageio", "tifffile")
# Warnings and levels of logging belong to the process, so one file is decoded at a time.
_DECODING = threading.RLock()


class BoundedFile(io.BufferedReader):
    """A file of which no more is asked than it has.

    Python takes all the memory that ``read`` is asked for, before it reads, and decoders ask for what a header says.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes; all that are left if it is None or negative."""
        return super().read(size if size is None else min(size, self._size))


@contextlib.contextmanager
def decoding(path: pathlib.Path, kind: str, *, damaged: str, remedy: str, most_bytes: int | None = None) -> Iterator[int]:
    """Surrounds the decoding of a file that may hold anything: whatever goes wrong becomes one InputError.

    Decoders raise errors of any type (``struct.error``, ``tokenize.TokenError``, ``MemoryError``, …), and new versions raise
    others. To the user all of them mean the same. Warnings and log lines of decoders are silenced.

    Args:
      path: of the file.
      kind: what the file should be, such as ``an image``.
      damaged: what to say of it if it cannot be decoded, such as ``damaged or cut short``.
      remedy: what to do then.
      most_bytes: a larger file is refused before it is read, because it cannot be of this kind. None for any size.

    Yields:
      The file's size in bytes.

    Raises:
      InputError: the file is missing, not a regular file, too large or unreadable, or the body raised any error.
    """
    with _DECODING, _silence():
        try:
            yield _file_size(path, kind, most_bytes)
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the path of what should be {kind}") from None
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
            words = " ".join(str(error).split())[:120]
            cause = words if " " in words else describe(error)  # a sentence needs no type
            raise InputError(f"{path}: {damaged} ({cause}); {remedy}") from None


def _file_size(path: pathlib.Path, kind: str, most_bytes: int | None) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise InputError(f"{path}: is {what}; give the file of {kind}")
    if most_bytes is not None and status.st_size > most_bytes:
        raise InputError(f"{path}: has {status.st_size / 1e6:.0f} MB, too much for {kind}; give another file")
    return status.st_size


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
