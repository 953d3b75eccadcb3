"""Putting images together that one compiled program can restore at once, and how many of them a device has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from jaxdeblur.config import Config

# Bytes that a deep prior's fit takes for each pixel and channel; measured with 128 channels on a CPU.
_BYTES_PER_PIXEL_AND_CHANNEL = 250
# An accelerator is kept busy by fewer than this, and what a crash loses is bounded.
_MOST = 16
# At most so many batches' worth of images wait for others like them.
_WAITING_BATCHES = 4

Item = TypeVar("Item")


def fit_bytes(config: Config, pixels: int) -> float:
    """About how much memory the deep prior's fit of one image of ``pixels`` pixels takes; 0 without one."""
    if config.fit is None:
        return 0.0
    copies = config.num_restarts * config.fit.num_samples
    return float(_BYTES_PER_PIXEL_AND_CHANNEL * config.fit.image_generator.channels * pixels * copies)


def fits_together(config: Config, asked: int | None = None) -> bool:
    """Whether images may share a deep prior's program at all; the one place that asks for jax's backend.

    Args:
      config: of the run.
      asked: the batch size that the user gave, or None: on CPUs, whose cores one fit keeps busy, there is then nothing to gain.
    """
    if config.fit is None or asked == 1:
        return False
    if asked is not None:
        return True
    import jax

    return jax.default_backend() != "cpu"


def default_batch_size(config: Config, pixels: int) -> int:
    """How many images to fit together: one on a CPU, see :func:`fits_together`; else as many as the memory holds."""
    if not fits_together(config):
        return 1
    import jax

    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return max(1, min(_MOST, int(0.8 * limit / fit_bytes(config, pixels))))


def batch_size(asked: int | None, config: Config, shape: tuple[int, ...], *, elsewhere: bool) -> int:
    """How many images like one of ``shape`` (``[H, W]`` or ``[H, W, 3]``) make a batch.

    Args:
      asked: what the user says, or None.
      config: of the run.
      shape: of the image.
      elsewhere: whether other machines do the work, of whose memory nothing is known here.
    """
    if asked is not None:
        return asked
    return 1 if elsewhere else default_batch_size(config, pixels_of(shape))


def in_batches(items: Iterable[Item], alike: Callable[[Item], Hashable], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Puts items that are alike together, in batches of at most ``size`` of their first item.

    Items are drawn as they are needed; those that wait for others are bounded in number.

    Args:
      items: to be put together.
      alike: items with equal values of this may share a batch.
      size: of the batch that an item begins.

    Yields:
      Batches, none of them empty.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        batch = waiting.setdefault(alike(item), [])
        batch.append(item)
        if len(batch) >= size(batch[0]):
            yield waiting.pop(alike(item))
        elif sum(map(len, waiting.values())) > _WAITING_BATCHES * max(size(batch[0]) for batch in waiting.values()):
            yield waiting.pop(max(waiting, key=lambda which: len(waiting[which])))
    yield from waiting.values()


def pixels_of(shape: tuple[int, ...]) -> int:
    """Pixels of an image ``[H, W]`` or ``[H, W, 3]``."""
    return math.prod(shape[:2])
