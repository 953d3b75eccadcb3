"""Convolutions with zero borders, as the teachers were trained with, on images ``[..., H, W, C]``.

Two ways of computing the same: XLA's own convolution, the quickest to compile, and sums of matrix products over shifted
slices, which keep their speed where a gradient is taken inside a loop on a CPU (see :mod:`jaxdeblur.networks.layers`). Filters
are kept as ``[rows, columns, inputs, outputs]`` and are not flipped, the transposed ones included.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdeblur.networks import layers

Start = Literal["random", "zero", "keep_first", "faint_first"]
# Not nothing: a rectifier over exact zeros would never learn.
_FAINT = 0.01


def conv(image: jax.Array, kernel: jax.Array, *, stride: int = 1, in_loop: bool = False) -> jax.Array:
    """Filters (without a flip) an image with zero borders.

    Args:
      image: ``[..., H, W, C]``.
      kernel: ``[k, k, C, D]``, k odd.
      stride: between outputs.
      in_loop: a gradient is taken through it inside a loop: write it out where XLA's own would be slow there (on CPUs).

    Returns:
      ``[..., ⌈H/stride⌉, ⌈W/stride⌉, D]``.
    """
    *lead, height, width, channels = image.shape
    size = kernel.shape[0]
    margin = (size // 2, size // 2)
    if not in_loop or layers.use_library_convolutions():
        result = lax.conv_general_dilated(
            image.reshape(-1, height, width, channels),
            kernel,
            (stride, stride),
            (margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return result.reshape(*lead, *result.shape[1:])
    padded = jnp.pad(image, [*[(0, 0)] * len(lead), margin, margin, (0, 0)])
    if size == 3 and stride == 1 and layers.minimal_filtering_pays(image):
        return layers.minimal3x3(padded, kernel)
    # The columns side by side along the channels, the rows as a sum: a fifth of the memory that all 25 would take.
    beside = jnp.concatenate([padded[..., column : column + width : stride, :] for column in range(size)], axis=-1)
    return sum(
        (
            layers.channel_product(beside[..., row : row + height : stride, :, :], taps.reshape(size * channels, -1))
            for row, taps in enumerate(kernel)
        ),
        start=jnp.zeros((), image.dtype),
    )


def conv_transpose(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles height and width by a transposed convolution: ``out[2i − 1 + u] += image[i] · kernel[u]`` along both axes.

    That is stride 2 and padding 1, with one more row and column of output for an odd k. Outputs of one parity see
    the same taps, so that each of the four parities is one matrix product.

    Args:
      image: ``[..., H, W, C]``.
      kernel: ``[k, k, C, D]``, k 3 or 4.

    Returns:
      ``[..., 2H, 2W, D]``.
    """
    *lead, height, width, _ = image.shape
    size = kernel.shape[0]
    padded = jnp.pad(image, [*[(0, 0)] * len(lead), (1, 1), (1, 1), (0, 0)])

    def taps(parity: int) -> list[tuple[int, int]]:
        """(tap, first row of ``padded``) for the outputs of one parity."""
        return [(tap, 1 + (parity + 1 - tap) // 2) for tap in range(1 - parity, size, 2)]

    def output(row_parity: int, column_parity: int) -> jax.Array:
        pairs = [(row, column) for row in taps(row_parity) for column in taps(column_parity)]
        shifted = [padded[..., top : top + height, left : left + width, :] for (_, top), (_, left) in pairs]
        weights = [kernel[u, v] for (u, _), (v, _) in pairs]
        return layers.channel_product(jnp.concatenate(shifted, axis=-1), jnp.concatenate(weights, axis=0))

    rows = [jnp.stack([output(row, column) for column in (0, 1)], axis=-2) for row in (0, 1)]
    # [..., H, 2, W, 2, D]: parities beside the pixels that they belong to.
    return jnp.stack(rows, axis=-4).reshape(*lead, 2 * height, 2 * width, -1)


def _initialiser(start: Start) -> nn.initializers.Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        if start == "zero":
            return jnp.zeros(shape, dtype)
        kernel = nn.initializers.he_normal()(key, shape, dtype)
        if start == "keep_first":
            return kernel.at[..., 0].set(0.0).at[shape[0] // 2, shape[1] // 2, 0, 0].set(1.0)
        return kernel.at[..., 0].multiply(_FAINT) if start == "faint_first" else kernel

    return init


class Conv(nn.Module):
    """A convolution with zero borders and a bias.

    Attributes:
      channels: of the output.
      size: side of the filters.
      stride: 1 or 2.
      transposed: double the resolution instead (stride is then not looked at).
      start: of the filters. ``random``: He's. ``zero``: a residual branch says nothing at first. ``keep_first``: random, but
        the first channel is handed on as it is. ``faint_first``: random, but the first channel is nearly zero.
      in_loop: see :func:`conv`.
    """

    channels: int
    size: int = 3
    stride: int = 1
    transposed: bool = False
    start: Start = "random"
    in_loop: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[..., H, W, C]`` → ``[..., H', W', channels]``."""
        kernel = self.param("kernel", _initialiser(self.start), (self.size, self.size, image.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        if self.transposed:
            return conv_transpose(image, kernel) + bias
        return conv(image, kernel, stride=self.stride, in_loop=self.in_loop) + bias
