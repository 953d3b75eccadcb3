"""DMPHN(1-2-4-8): a hierarchy of encoder-decoders over ever smaller patches of the image. Blind.

Source: Zhang, Dai, Li & Koniusz, "Deep stacked hierarchical multi-patch network for image deblurring", CVPR 2019,
https://arxiv.org/abs/1904.03468. Layers carry the names of the published checkpoints (``layer2.0`` there is ``layer2_0``
here), so that weights map one to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.imaging.colour import luma
from jaxdeblur.networks.teachers.zero_padded import Conv

Params = Mapping[str, Any]

# Rows and columns of patches at each level.
GRIDS = ((1, 1), (2, 1), (2, 2), (4, 2))
# Two stride-2 convolutions within patches of that grid.
_HEIGHT_MULTIPLE, _WIDTH_MULTIPLE = 16, 8
_WIDTHS = (32, 64, 128)


class Encoder(nn.Module):
    """Image ``[..., H, W, 3]`` → features ``[..., H/4, W/4, 128]``.

    Attributes:
      in_loop: see :func:`jaxdeblur.networks.teachers.zero_padded.conv`.
    """

    in_loop: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Three resolutions: a convolution and two residual blocks at each."""
        for first, channels, stride in zip((1, 5, 9), _WIDTHS, (1, 2, 2), strict=True):
            image = Conv(channels, stride=stride, in_loop=self.in_loop, name=f"layer{first}")(image)
            image = _residual_blocks(image, first + 1, self.in_loop)
        return image


class Decoder(nn.Module):
    """Features ``[..., H/4, W/4, 128]`` → image ``[..., H, W, 3]``.

    Attributes:
      in_loop: see :func:`jaxdeblur.networks.teachers.zero_padded.conv`.
    """

    in_loop: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Three resolutions: two residual blocks and a transposed convolution at each, the last one not transposed."""
        for first, channels in ((13, _WIDTHS[1]), (17, _WIDTHS[0])):
            features = _residual_blocks(features, first, self.in_loop)
            features = Conv(channels, size=4, transposed=True, name=f"layer{first + 3}")(features)
        return Conv(3, in_loop=self.in_loop, name="layer24")(_residual_blocks(features, 21, self.in_loop))


def _residual_blocks(image: jax.Array, first: int, in_loop: bool) -> jax.Array:
    """Two blocks ``x + conv(relu(conv(x)))``, the layers numbered from ``first``."""
    for number in (first, first + 1):
        inner = nn.relu(Conv(image.shape[-1], in_loop=in_loop, name=f"layer{number}_0")(image))
        image = image + Conv(image.shape[-1], in_loop=in_loop, name=f"layer{number}_2")(inner)
    return image


class Dmphn(nn.Module):
    """The hierarchy, from the smallest patches up to the image.

    At each level, with its own encoder E and decoder D: ``features = join(E(patches + residual)) + features of the level
    below``, where ``join`` puts the features of those patches side by side that make up one patch of the level above;
    ``residual = D(features)``. The highest level's residual is the image.

    Attributes:
      in_loop: see :func:`jaxdeblur.networks.teachers.zero_padded.conv`.
    """

    in_loop: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Deblurs.

        Args:
          image: ``[..., H, W, 3]``, less 0.5; H divides by 16, W by 8.

        Returns:
          The same shape, less 0.5.
        """
        lead = image.shape[:-3]
        images = image.reshape(-1, *image.shape[-3:])
        below: jax.Array | None = None
        residual: jax.Array | None = None
        for level in reversed(range(len(GRIDS))):
            grid, above = GRIDS[level], GRIDS[max(level - 1, 0)]
            whole = images if residual is None else images + _join(residual, grid, (1, 1))
            features = _join(Encoder(self.in_loop, name=f"encoder_lv{level + 1}")(_split(whole, grid)), grid, above)
            if below is not None:
                features = features + _join(below, grid, above)
            residual = Decoder(self.in_loop, name=f"decoder_lv{level + 1}")(features)
            below = features
        assert residual is not None
        return residual.reshape(*lead, *residual.shape[-3:])


def restore(params: Params, image: jax.Array, *, in_loop: bool = False) -> jax.Array:
    """Deblurs an image; pure, so it can be compiled, mapped over a leading axis and differentiated.

    A grey image is given to the network as red, green and blue alike, and the luma of its answer is taken.

    Args:
      params: as :func:`jaxdeblur.networks.teachers.weights.load_teacher` gives them.
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], H at least 16, W at least 8. Sides that the patches do not divide are
        extended by reflection and cut again.
      in_loop: a gradient is taken through the answer inside a loop: the same numbers, computed in another way.

    Returns:
      The shape of ``image``; not clipped.
    """
    chex.assert_rank(image, {2, 3})
    chex.assert_axis_dimension_gteq(image, 0, _HEIGHT_MULTIPLE)
    chex.assert_axis_dimension_gteq(image, 1, _WIDTH_MULTIPLE)
    height, width = image.shape[:2]
    colour = image if image.ndim == 3 else jnp.stack([image] * 3, axis=-1)
    chex.assert_axis_dimension(colour, 2, 3)
    margins = ((0, -height % _HEIGHT_MULTIPLE), (0, -width % _WIDTH_MULTIPLE), (0, 0))
    padded = jnp.pad(colour - 0.5, margins, mode="reflect")
    network: Any = Dmphn(in_loop).apply({"params": params}, padded)
    restored = network[:height, :width] + 0.5
    return restored if image.ndim == 3 else luma(restored)


def _split(images: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Cuts images into patches, row by row: ``[B, H, W, C]`` → ``[B·rows·columns, H/rows, W/columns, C]``."""
    rows, columns = grid
    batch, height, width, channels = images.shape
    patches = images.reshape(batch, rows, height // rows, columns, width // columns, channels).swapaxes(2, 3)
    return patches.reshape(-1, height // rows, width // columns, channels)


def _join(patches: jax.Array, grid: tuple[int, int], coarser: tuple[int, int]) -> jax.Array:
    """Puts patches of one grid together to those of a coarser one: the inverse of cutting these."""
    (rows, columns), (fewer_rows, fewer_columns) = grid, coarser
    _, height, width, channels = patches.shape
    whole = patches.reshape(-1, rows, columns, height, width, channels).swapaxes(2, 3)
    return _split(whole.reshape(-1, rows * height, columns * width, channels), (fewer_rows, fewer_columns))
