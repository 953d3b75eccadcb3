"""Files written whole or not at all, and what 8 bits and a JPEG keep of an image. Shared by the experiments; no command."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path with the same ending to write to, which takes the place of ``path`` if the block ends well and goes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".new-{path.name}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, the whole of it or nothing."""
    with written_whole(path) as new:
        new.write_text(text, encoding="utf-8")


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes matplotlib's ``figure``, the whole of it or nothing; the same figure gives the same bytes."""
    with written_whole(path) as new:
        figure.savefig(new, dpi=110, metadata={"Software": None})


def in_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any shape, clipped to [0, 1], as uint8."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def as_jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    """``[H, W(, 3)]`` uint8 as it comes back from a JPEG of that quality, from 1 to 95."""
    content = io.BytesIO()
    Image.fromarray(levels).save(content, format="JPEG", quality=quality)
    with Image.open(content) as image:
        return np.asarray(image)
