"""Windows of an image, and kernels estimated in each of them.

Where the blur varies, one kernel for the whole image is often like none of those that it has. Within a window that is not much
larger than the kernels it hardly varies, and there an estimate finds it, if the window has edges enough.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from jaxdeblur.classical.compiled import side_by_side
from jaxdeblur.classical.initialiser import informative_crop, likely_kernels
from jaxdeblur.config import InitialiserConfig


@dataclasses.dataclass(frozen=True, eq=False)
class LocalKernels:
    """Kernels that were found in a window.

    Attributes:
      kernels: ``[h, h]`` each, the likeliest first.
      middle: of the window, rows and columns in pixels from the image's.
    """

    kernels: tuple[np.ndarray, ...]
    middle: np.ndarray


def cut_windows(image: np.ndarray, side: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that cover an image or, where more than ``most`` were needed, the most informative ones of equal parts.

    Args:
      image: ``[H, W]``.
      side: of the windows in pixels; the image's shorter one where that is less.
      most: windows.

    Returns:
      ``[P, side, side]``, and where their middles are: ``[P, 2]`` float32, in pixels from the image's middle.
    """
    side = min(side, *image.shape)
    counts = [max(1, math.ceil(n / side - 0.25)) for n in image.shape]
    while math.prod(counts) > most:
        counts[int(np.argmax(counts))] -= 1
    windows, middles = [], []
    for index in itertools.product(*(range(count) for count in counts)):
        parts = []
        for n, count, number in zip(image.shape, counts, index, strict=True):
            length = max(math.ceil(n / count), side)
            start = round(number * (n - length) / max(count - 1, 1))
            parts.append(slice(start, start + length))
        within = informative_crop(image[parts[0], parts[1]], side)
        rows, columns = (slice(part.start + own.start, part.start + own.stop) for part, own in zip(parts, within, strict=True))
        windows.append(image[rows, columns])
        middles.append([(s.start + s.stop - n) / 2 for s, n in zip((rows, columns), image.shape, strict=True)])
    return np.stack(windows), np.asarray(middles, np.float32)


def local_kernels(
    blurry: np.ndarray,
    config: InitialiserConfig,
    *,
    side: int,
    most: int,
    each: int,
    kernel_size: int,
    noise_std: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[LocalKernels]:
    """Estimates kernels in each of some windows of a grey image.

    By :func:`~jaxdeblur.classical.initialiser.likely_kernels`: with as few pixels as a window has, kernels that are refined any
    further lose what they were right in.

    Args:
      blurry: ``[H, W]`` in [0, 1].
      config: of the estimates.
      side: of the windows, in pixels.
      most: windows.
      each: kernels of a window, at most.
      kernel_size: odd side of their support, reduced to a third of a window's.
      noise_std: of the image, in [0, 1] units.
      progress: called with (windows done, windows in all).

    Returns:
      The likeliest of each window; none if a single window would be the whole image.
    """
    if most == 0:
        return []
    windows, middles = cut_windows(blurry, side, most)
    if len(windows) == 1:
        return []
    config = dataclasses.replace(config, num_finalists=each)

    def estimated(window: np.ndarray) -> tuple[np.ndarray, ...]:
        return likely_kernels(window, config, kernel_size=kernel_size, noise_std=noise_std)

    found = []
    # The first compiles all programs; were all to begin together, each would.
    estimates = itertools.chain([estimated(windows[0])], side_by_side(estimated, list(windows[1:])))
    for kernels, middle in zip(estimates, middles, strict=True):
        found.append(LocalKernels(kernels, middle))
        if progress is not None:
            progress(len(found), len(windows))
    return found
