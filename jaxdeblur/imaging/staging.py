"""Files that appear together, whole, or not at all, whatever ends the process.

Files are first written into a hidden folder beside their places. One rename then marks that folder as complete, and its files
are moved out. A process that is killed leaves its folder behind, and :func:`tidy` sees to it: an unfinished folder of a dead
process is removed, a complete one is moved out. A process that writes holds a lock on its folder, which the system releases
when it ends, so that nobody takes a living process for a dead one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterator, Sequence
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".jaxdeblur-part"
_COMPLETE = ".jaxdeblur-done"
_LOCK = "lock"


@contextlib.contextmanager
def staged(paths: Sequence[pathlib.Path], *, replace: bool = True) -> Iterator[list[pathlib.Path]]:
    """Lends temporary names for ``paths``; on leaving, moves them into place, or removes them if anything failed.

    A reader of ``paths`` never sees half a file, and a failure in the last one leaves none of the others behind. Two processes
    may write the same ``paths``: all of them are then those of one process.

    Args:
      paths: of the files, all in one folder. They are moved into place in this order.
      replace: whether files of these names may be replaced.

    Yields:
      One temporary path for each of ``paths``, with the same ending, in the same file system.

    Raises:
      OSError: a file cannot be written. ``FileExistsError`` if it is there and may not be replaced.
    """
    folder = paths[-1].parent
    # A name of fixed length, the same for all who write these files.
    complete = folder / f".{hashlib.sha256(paths[-1].name.encode(errors='surrogateescape')).hexdigest()[:16]}{_COMPLETE}"
    place = folder / f".{uuid.uuid4().hex}{_UNFINISHED}"  # named before it is made, so that an interrupt never loses it
    lock: IO[bytes] | None = None
    try:
        lock = _make(place)
        temporaries = [place / f"{number:02}-{path.name}" for number, path in enumerate(paths)]
        yield temporaries
        _commit(place, complete, paths, replace)
    finally:
        try:
            _discard(place, lock)
        except KeyboardInterrupt:
            _discard(place, lock)
            raise


def tidy(folder: pathlib.Path) -> None:
    """Sees to what processes that were killed have left in ``folder``; living ones are not disturbed.

    Where files cannot be locked (Windows, some network file systems), unfinished folders are left where they are.
    """
    with contextlib.suppress(OSError):  # what cannot be put right now may be the next time
        for place in list(folder.glob(f".*{_COMPLETE}")):
            _move_out(place)
        for place in list(folder.glob(f".*{_UNFINISHED}")):
            _remove_if_dead(place)


def _make(place: pathlib.Path) -> IO[bytes]:
    """Makes the folder for temporary files, and its lock."""
    while True:
        place.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = (place / _LOCK).open("xb")
            if fcntl is None:
                lock.close()  # an open file would keep its folder from being renamed
                return lock
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (place / _LOCK).exists():
                return lock
            lock.close()
        # Another process found the folder without its lock and took it for a dead one's.


def _remove_if_dead(place: pathlib.Path) -> None:
    try:
        with (place / _LOCK).open("r+b") as lock:
            if fcntl is None:
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A third process may have removed that lock first, and a living one have made its folder and lock again.
            if os.path.samestat(os.fstat(lock.fileno()), (place / _LOCK).stat()):
                _remove(place)
    except FileNotFoundError:
        # It died before it had a lock, and is empty, or is about to have one, and will see that it is gone.
        with contextlib.suppress(OSError):
            place.rmdir()
    except OSError:  # it lives
        pass


def _discard(place: pathlib.Path, lock: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):  # it has been moved into place
        _remove(place)
    if lock is not None:
        lock.close()


def _remove(place: pathlib.Path) -> None:
    """Removes a folder, its lock last: one without a lock is always empty."""
    for file in place.iterdir():
        if file.name != _LOCK:
            file.unlink()
    (place / _LOCK).unlink(missing_ok=True)
    place.rmdir()


def _commit(place: pathlib.Path, complete: pathlib.Path, paths: Sequence[pathlib.Path], replace: bool) -> None:
    try:
        while True:
            _move_out(complete)
            for path in paths:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, "a folder is in the way", str(path))
                if not replace and path.exists():
                    raise FileExistsError(errno.EEXIST, "another process has written it meanwhile", str(path))
            try:
                place.rename(complete)
                break
            except OSError as error:
                # Another process has completed the same files meanwhile: its own go first, and may be gone by now.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not complete.exists():
                    raise
        _move_out(complete)
    except KeyboardInterrupt:
        if not place.exists():  # from its renaming on they are finished results
            _move_out(complete)
        raise


def _move_out(complete: pathlib.Path) -> None:
    """Moves the files of a complete folder into place. Several processes may do so with the same one at a time."""
    files: list[pathlib.Path] = []
    with contextlib.suppress(FileNotFoundError):  # there is none, or another process removes it while it is listed
        files = sorted(complete.glob("[0-9][0-9]-*"))
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            file.replace(complete.parent / file.name[3:])
    (complete / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process has removed it, or has put a new one in its place
        complete.rmdir()
