"""Results on disk, one folder for each run, all of it or none: what is there is whole, whatever ended the process.

A result is made in a folder of another name and then renamed, which a file system does at once. Its name holds the digest of
all that it depends on, so that a changed setting, image or version is another result, and the same one is never made twice,
no matter which table asks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from experiments.files import write_text
from jaxdeblur.errors import InputError

# Of what is kept and how; to be raised when that changes, so that older results are made again.
SCHEMA = 1

_RESULT = "result.json"
_FAILURES = "failures"


def digest(*parts: object) -> str:
    """A short name for what a result depends on. Arrays count with their shape and bytes, all else with its ``repr``."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.shape} {part.dtype}".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
        else:
            sha.update(repr(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


class Store:
    """The results under a folder.

    Args:
      folder: made if it is not there.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot make this folder ({error.strerror}); give another --output_dir") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second runner out, which would do the same images once more. The system lets go of it with the process.

        Raises:
          InputError: another process has it.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.folder}: another run is at work here; wait for it, or give another --output_dir"
                ) from None
            for leftover in self.folder.glob("*/.new-*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def load(self, name: str) -> dict[str, Any] | None:
        """What :meth:`save` was given, without the arrays; None if there is no such result or it is damaged."""
        try:
            record = json.loads((self.folder / name / _RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None

    def array(self, name: str, which: str) -> np.ndarray:
        """An array of a result.

        Raises:
          InputError: it is damaged or missing.
        """
        path = self.folder / name / f"{which}.npy"
        try:
            array: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            raise InputError(f"{path}: damaged or missing; delete its folder and run again") from None
        return array

    def save(self, name: str, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Keeps a result: ``record`` as JSON, each array as NPY (float32) and as an image scaled for viewing.

        Raises:
          InputError: it cannot be written.
        """
        final = self.folder / name
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            folder = pathlib.Path(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
            for which, array in arrays.items():
                np.save(folder / f"{which}.npy", array.astype(np.float32))
                Image.fromarray(_viewable(which, array)).save(folder / f"{which}.png")
            text = json.dumps({"schema": SCHEMA, **record, "arrays": sorted(arrays)}, indent=1, ensure_ascii=False)
            (folder / _RESULT).write_text(text, encoding="utf-8")
            if final.exists():  # damaged, or it would have been used
                shutil.rmtree(final)
            os.rename(folder, final)
        except OSError as error:
            raise InputError(f"{final}: cannot be written ({error.strerror or error}); nothing else is lost") from error
        with contextlib.suppress(OSError):
            self._failure(name).unlink()

    def failures(self, name: str) -> tuple[str, ...]:
        """The errors of a run that failed, a line each; empty if it did not."""
        try:
            return tuple(self._failure(name).read_text(encoding="utf-8").splitlines())
        except OSError:
            return ()

    def save_failure(self, name: str, errors: tuple[str, ...]) -> None:
        """Keeps the errors of a run that failed."""
        path = self._failure(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(errors) + "\n")

    def _failure(self, name: str) -> pathlib.Path:
        return self.folder / _FAILURES / f"{name.replace('/', '__')}.txt"


def _viewable(which: str, array: np.ndarray) -> np.ndarray:
    """8 bits a channel; what is not an image (kernels, deviations) is scaled to its maximum."""
    scale = 1.0 if which.endswith("restored") else 1.0 / max(float(array.max()), 1e-12)
    return np.round(np.clip(array * scale, 0.0, 1.0) * 255.0).astype(np.uint8)
