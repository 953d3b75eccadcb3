"""The final image: a non-blind method on the whole image, in tiles where that bounds the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import hyper_laplacian as kf
from jaxdeblur.classical import learned as ln
from jaxdeblur.classical import saturated as sat
from jaxdeblur.classical import sparse as sp
from jaxdeblur.classical.compiled import side_by_side
from jaxdeblur.classical.tiles import Tile, fade, halves_of, tight, tiles_of
from jaxdeblur.config import NonblindConfig
from jaxdeblur.errors import InputError
from jaxdeblur.operators.filter_flow import kernels_of_part

METHODS = ("hyper_laplacian", "learned", "sparse", "saturated")
# Tiles that CPUs work on at a time; each keeps one core busy and takes memory of its own.
_TILES_AT_ONCE = 2
# Images that need no tiles are halved all the same if a side is so long, for the second core.
_HALVED_SIDE = 600
# Those that take a kernel for each part of the image.
VARYING = METHODS[1:]
# A linear image that leaves more than this of the highlights unexplained is made again with clipping in the model: a lower bar
# than that for another estimate of the kernel, which takes longer. Measured on `tune`: of two images in between none lost.
_LARGEST_LINEAR_MISFIT = 0.008
# Side of the parts in which it is, beside what they have in common with others. What is far from highlights stays linear: it is
# less grainy so.
_PART_SIDE = 256


def restore(
    blurry: np.ndarray,
    kernel: np.ndarray,
    method: str,
    config: NonblindConfig,
    *,
    noise_std: float,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Non-blind deconvolution of an image of any size.

    Args:
      blurry: ``[H, W]`` or ``[H, W, C]`` in [0, 1].
      kernel: ``[h, w]``, odd sides, summing to one; or ``[R, C, h, w]``, one for each of the parts of the image.
      method: one of :data:`METHODS`; ``saturated``, which is ``learned`` for a sensor that clips, for images with highlights.
      config: weights and the side of a tile.
      noise_std: of the image, in [0, 1] units.
      progress: called with (tiles done, tiles in all).

    Returns:
      The shape of ``blurry``; not clipped.

    Raises:
      InputError: no such method, or it takes one kernel only.
    """
    if method not in METHODS:
        raise InputError(f"unknown non-blind method {method!r}: choose from {', '.join(METHODS)}")
    if method not in VARYING and kernel.ndim == 4:
        raise InputError(f"{method} takes one kernel for the whole image: choose from {', '.join(VARYING)}")
    job = _Job.of(blurry, kernel, config, noise_std)
    return job.in_tiles(lambda tile: job.tile(tile, method), progress)


def restore_as_needed(
    blurry: np.ndarray,
    kernel: np.ndarray,
    config: NonblindConfig,
    *,
    noise_std: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, str, float]:
    """:func:`restore` by ``learned``, and by ``saturated`` those parts in which that leaves highlights unexplained.

    These are parts of tiles, some hundred pixels a side; where together they are as large as the tile, all of it is made again.

    Args:
      blurry: as of ``restore``.
      kernel: likewise.
      config: likewise.
      noise_std: likewise.
      progress: likewise.

    Returns:
      The image; ``saturated`` if it made any part, else ``learned``; and what ``learned`` leaves unexplained of the highlights
      of all, as :func:`jaxdeblur.classical.saturated.misfit_by_clipping` has it.
    """
    job = _Job.of(blurry, kernel, config, noise_std)
    errors: list[tuple[float, float]] = []
    again: list[Tile] = []

    def restored_tile(tile: Tile) -> np.ndarray:
        linear = job.tile(tile, "learned")
        own = job.errors(tile, linear)
        errors.append(own)
        if not job.leaves_highlights(own):
            return linear
        again.append(tile)
        return job.part(tile).with_highlights(linear)

    restored = job.in_tiles(restored_tile, progress)
    return restored, "saturated" if again else "learned", sat.root_mean_square(errors)


@dataclasses.dataclass(frozen=True)
class _Job:
    """An image to be restored, in tiles.

    Attributes:
      blurry: ``[H, W]`` or ``[H, W, C]``.
      kernel: ``[h, w]`` or ``[R, C, h, w]``.
      config: as of :func:`restore`.
      noise_std: likewise.
      fast: whether all of it would take minutes.
    """

    blurry: np.ndarray
    kernel: np.ndarray
    config: NonblindConfig
    noise_std: float
    fast: bool

    @classmethod
    def of(cls, blurry: np.ndarray, kernel: np.ndarray, config: NonblindConfig, noise_std: float) -> _Job:
        fast = max(blurry.shape[:2]) > config.tile_side
        # Every pixel of the kernel's support costs, whether it has mass or not.
        return cls(blurry, tight(kernel) if fast else kernel, config, noise_std, fast)

    def kernel_of(self, tile: Tile) -> np.ndarray:
        return kernels_of_part(self.kernel, self.blurry.shape, tile)

    def part(self, tile: Tile) -> _Job:
        """The same for a tile alone."""
        return dataclasses.replace(self, blurry=self.blurry[tile], kernel=self.kernel_of(tile))

    def errors(self, tile: Tile, linear: np.ndarray) -> tuple[float, float]:
        """What a linear image of a tile leaves unexplained of its highlights: a sum of squares and of how many pixels."""
        return sat.errors_by_clipping(self.blurry[tile], linear, self.kernel_of(tile))

    def leaves_highlights(self, errors: tuple[float, float]) -> bool:
        """Whether those are too large for what is just white."""
        misfit = sat.root_mean_square([errors])
        return sat.is_unexplained(misfit, noise_std=self.noise_std, largest=_LARGEST_LINEAR_MISFIT)

    def with_highlights(self, linear: np.ndarray) -> np.ndarray:
        """A linear image of all of it, of which those parts are made again that leave highlights unexplained."""
        overlap = self.overlap
        parts = tiles_of(self.blurry.shape, _PART_SIDE + 2 * overlap, overlap)
        lit = [part for part in parts if self.leaves_highlights(self.errors(part, linear[part]))]
        # The whole is less work than many parts. And no part alone need be as bad as all of them together.
        if not lit or sum(linear[part].size for part in lit) >= linear.size:
            return self.tile((slice(None), slice(None)), "saturated")
        return self.joined(parts, lambda part: self.tile(part, "saturated") if part in lit else linear[part], None)

    def tile(self, tile: Tile, method: str) -> np.ndarray:
        """What one of :data:`METHODS` makes of a tile, of its shape."""
        config, observed, kernel = self.config, jnp.asarray(self.blurry[tile]), jnp.asarray(self.kernel_of(tile))
        if method == "hyper_laplacian":
            weight = config.smoothness * kf.weight_for_noise(self.noise_std)
            return np.asarray(kf.hyper_laplacian(observed, kernel, weight=weight))
        if method == "sparse":
            weight = config.smoothness * sp.weight_for_noise(self.noise_std, base=config.sparse_weight)
            whole = sp.sparse(observed, kernel, weight=weight)
        else:
            whole = ln.learned(
                observed,
                kernel,
                noise_std=self.noise_std,
                kernel_std=config.kernel_std if kernel.ndim == 2 else config.varying_kernel_std,
                smoothness=config.smoothness,
                fast=self.fast,
                clipped=method == "saturated" and bool(self.blurry[tile].max() >= sat.CLIPPED_FROM),
            )
        (h, w), (rows, columns) = kernel.shape[-2:], observed.shape[:2]
        return np.asarray(whole[h // 2 : h // 2 + rows, w // 2 : w // 2 + columns])

    @property
    def overlap(self) -> int:
        """In pixels: beyond about two kernels' width a pixel has no say any more."""
        return 2 * max(tight(self.kernel).shape[-2:])

    def in_tiles(self, restored_tile: Callable[[Tile], np.ndarray], progress: Callable[[int, int], None] | None) -> np.ndarray:
        """The whole image, in tiles that bound the memory, or at least in two that go on side by side."""
        tiles = tiles_of(self.blurry.shape, self.config.tile_side, self.overlap)
        if len(tiles) == 1:
            tiles = halves_of(self.blurry.shape, self.overlap, smallest=_HALVED_SIDE)
        return self.joined(tiles, restored_tile, progress)

    def joined(
        self,
        tiles: Sequence[Tile],
        restored_tile: Callable[[Tile], np.ndarray],
        progress: Callable[[int, int], None] | None,
    ) -> np.ndarray:
        """The whole image, of tiles that fade into one another."""
        shape, overlap = self.blurry.shape, self.overlap
        total = np.zeros(shape, np.float32)
        weights = np.zeros(shape[:2] + (1,) * (len(shape) - 2), np.float32)
        pixels = side_by_side(restored_tile, tiles, at_once=_TILES_AT_ONCE)
        for done, ((rows, columns), restored) in enumerate(zip(tiles, pixels, strict=True), start=1):
            window = np.outer(fade(rows, shape[0], overlap), fade(columns, shape[1], overlap))
            window = window.reshape(window.shape + (1,) * (len(shape) - 2)).astype(np.float32)
            total[rows, columns] += window * restored
            weights[rows, columns] += window
            if progress is not None:
                progress(done, len(tiles))
        return total / weights


def blend(blurry: np.ndarray, restored: np.ndarray, amount: float) -> np.ndarray:
    """``(1 − a) y + a x``: between the blurry image y and the restored one x, of one shape, ``a`` in [0, 1]."""
    return restored if amount == 1.0 else (1.0 - np.float32(amount)) * blurry + np.float32(amount) * restored


def overshoot(restored: np.ndarray, method: str) -> float:
    """Share of values more than a tenth outside [0, 1]: a wrong kernel's ringing makes many, a right one's hardly any.

    Args:
      restored: of any shape, before it is clipped.
      method: one of :data:`METHODS`, which made it; highlights that ``saturated`` finds above white do not count.
    """
    outside = restored < -0.1
    return float(np.mean(outside if method == "saturated" else outside | (restored > 1.1)))
