"""Tiles of a large image, which bound the memory and keep several cores busy."""

from __future__ import annotations

import itertools
import math

import numpy as np

Tile = tuple[slice, slice]


def tiles_of(shape: tuple[int, ...], side: int, overlap: int) -> list[Tile]:
    """Rows and columns of tiles of one shape that cover an image of ``shape``, see :func:`spans_of`."""
    rows, columns = (spans_of(length, side, overlap) for length in shape[:2])
    return list(itertools.product(rows, columns))


def halves_of(shape: tuple[int, ...], overlap: int, *, smallest: int) -> list[Tile]:
    """Two tiles along the longer side of an image of ``shape``, or one if that is below ``smallest`` or four ``overlap``."""
    rows, columns = ([slice(0, length)] for length in shape[:2])
    length = max(shape[:2])
    if length >= max(smallest, 4 * overlap):
        spans = spans_of(length, math.ceil(length / 2) + overlap, overlap)
        if length == shape[0]:
            rows = spans
        else:
            columns = spans
    return list(itertools.product(rows, columns))


def spans_of(length: int, side: int, overlap: int) -> list[slice]:
    """Spans of one length of at most ``side`` that cover ``length``, so that one compiled program serves all.

    As few as there can be with twice ``overlap`` in common, and then no longer than they need to be for that.
    """
    if length <= side:
        return [slice(0, length)]
    common = min(2 * overlap, side // 2)
    count = math.ceil((length - common) / (side - common))
    own = math.ceil((length + (count - 1) * common) / count)
    starts = np.linspace(0, length - own, count).round().astype(int)
    return [slice(int(start), int(start) + own) for start in starts]


def fade(span: slice, length: int, overlap: int) -> np.ndarray:
    """Weights along a tile: rising from the edges it shares with others, one at the image's own edges."""
    index = np.arange(span.stop - span.start)
    ramp = np.ones(len(index))
    if span.start > 0:
        ramp = np.minimum(ramp, (index + 0.5) / overlap)
    if span.stop < length:
        ramp = np.minimum(ramp, (len(index) - index - 0.5) / overlap)
    # Nearly nothing, but not zero, where the tile's own border is least reliable.
    return np.clip(ramp, 1e-3, 1.0) ** 2


def tight(kernel: np.ndarray) -> np.ndarray:
    """The kernel on the smallest odd support about its middle that holds its mass.

    Args:
      kernel: ``[h, w]`` or ``[R, C, h, w]``, odd sides.
    """
    lit = np.abs(kernel).reshape(-1, *kernel.shape[-2:]).max(0) > 0.0
    keep = []
    for side, seen in zip(lit.shape, (lit.any(1), lit.any(0)), strict=True):
        middle = side // 2
        reach = int(np.abs(np.flatnonzero(seen) - middle).max(initial=0))
        keep.append(slice(middle - reach, middle + reach + 1))
    return np.ascontiguousarray(kernel[..., keep[0], keep[1]])
