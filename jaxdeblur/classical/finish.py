"""The final image: a non-blind method on the whole image, in tiles where that bounds the memory."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.classical import hyper_laplacian as kf
from jaxdeblur.classical import learned as ln
from jaxdeblur.classical import saturated as sat
from jaxdeblur.classical import sparse as sp
from jaxdeblur.classical.compiled import side_by_side
from jaxdeblur.classical.tiles import fade, tight, tiles_of
from jaxdeblur.config import NonblindConfig
from jaxdeblur.errors import InputError
from jaxdeblur.operators.filter_flow import kernels_of_part

METHODS = ("hyper_laplacian", "learned", "sparse", "saturated")
# Tiles that CPUs work on at a time; each keeps one core busy and takes memory of its own.
_TILES_AT_ONCE = 2
# Those that take a kernel for each part of the image.
VARYING = METHODS[1:]


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

    # In tiles it takes minutes.
    fast = max(blurry.shape[:2]) > config.tile_side
    if fast:  # every pixel of the kernel's support costs, whether it has mass or not
        kernel = tight(kernel)
    # Beyond about two kernels' width a pixel has no say any more.
    overlap = 2 * max(kernel.shape[-2:])
    tiles = tiles_of(blurry.shape[:2], config.tile_side, overlap)
    kernel_std = config.kernel_std if kernel.ndim == 2 else config.varying_kernel_std

    def one(tile: jax.Array, kernel: jax.Array, clipped: bool) -> jax.Array:
        if method == "hyper_laplacian":
            weight = config.smoothness * kf.weight_for_noise(noise_std)
            return kf.hyper_laplacian(tile, kernel, weight=weight)
        if method == "sparse":
            weight = config.smoothness * sp.weight_for_noise(noise_std, base=config.sparse_weight)
            whole = sp.sparse(tile, kernel, weight=weight)
        else:
            whole = ln.learned(
                tile,
                kernel,
                noise_std=noise_std,
                kernel_std=kernel_std,
                smoothness=config.smoothness,
                fast=fast,
                clipped=clipped,
            )
        (h, w), (rows, columns) = kernel.shape[-2:], tile.shape[:2]
        return whole[h // 2 : h // 2 + rows, w // 2 : w // 2 + columns]

    total = np.zeros(blurry.shape, np.float32)
    weights = np.zeros(blurry.shape[:2] + (1,) * (blurry.ndim - 2), np.float32)

    def restored_tile(tile: tuple[slice, slice]) -> np.ndarray:
        own = kernels_of_part(kernel, blurry.shape, tile)
        clipped = method == "saturated" and bool(blurry[tile].max() >= sat.CLIPPED_FROM)
        return np.asarray(one(jnp.asarray(blurry[tile]), jnp.asarray(own), clipped))

    pixels = side_by_side(restored_tile, tiles, at_once=_TILES_AT_ONCE)
    for done, ((rows, columns), restored) in enumerate(zip(tiles, pixels, strict=True), start=1):
        window = np.outer(fade(rows, blurry.shape[0], overlap), fade(columns, blurry.shape[1], overlap))
        window = window.reshape(window.shape + (1,) * (blurry.ndim - 2)).astype(np.float32)
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
