"""What a training goes on from, kept in one file. Shared by the training commands; no command."""

from __future__ import annotations

import pathlib
from typing import Any, TypeVar

import flax
import jax
import numpy as np

from experiments.files import written_whole
from jaxdeblur.errors import InputError

_Tree = TypeVar("_Tree")


def save(path: pathlib.Path, tree: Any) -> None:
    """Writes a tree of arrays, all of it or nothing."""
    with written_whole(path) as new:
        new.write_bytes(flax.serialization.to_bytes(tree))


def restored(path: pathlib.Path, tree: _Tree, *, other: str) -> _Tree:
    """What :func:`save` has written.

    Args:
      path: of the file.
      tree: arrays of the shapes that are expected.
      other: what is said, after the path, of a file with arrays of other shapes.

    Raises:
      InputError: the file is damaged, or of another run.
    """
    try:
        found: _Tree = flax.serialization.from_bytes(tree, path.read_bytes())
        matching = jax.tree.map(lambda a, b: np.shape(a) == np.shape(b), tree, found)
    except Exception as error:
        raise InputError(f"{path} cannot be gone on from ({type(error).__name__}): give another --output_dir") from None
    if not jax.tree.all(matching):
        raise InputError(f"{path} {other}")
    return found
