"""DWDN: Wiener deconvolution of learned features, then a multi-scale network that clears what is left. Non-blind.

Source: Dong, Roth & Schiele, "Deep Wiener deconvolution: Wiener meets deep learning for image deblurring", NeurIPS 2020,
https://arxiv.org/abs/2103.09962, in the sizes of its public code.

The parameters tell the sizes (:func:`config_of`), so that a set of any width is used in the same way. Fresh ones hand the first
channel through, so that an untrained network is a Wiener filter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.errors import InputError
from jaxdeblur.networks import layers
from jaxdeblur.networks.teachers.zero_padded import Conv
from jaxdeblur.operators.blur import centred_kernel_spectrum

Params = Mapping[str, Any]

# Share of var(residual) / std(channel) that is taken for the noise-to-signal ratio.
_NOISE_SHARE = 8 / 30
# Below any channel's spread that matters; a constant one would divide by zero.
_SMALLEST_STD = 1e-8
# The comparisons that bring the median of nine to place 4, place 4 of the result; Smith, "Implementing median filters in
# XC4000E FPGAs" (1996).
_MEDIAN_EXCHANGES = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3)),
    *((5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)


@dataclasses.dataclass(frozen=True)
class DwdnConfig:
    """Sizes of the network.

    Attributes:
      features: channels that are deconvolved.
      widths: channels at full, half, quarter, ... resolution of each scale's encoder-decoder.
      num_residual_blocks: in each stage.
      num_scales: resolutions at which the encoder-decoder is run, coarsest first, with the same weights but for its entry.
      filter_size: odd side of the filters.
    """

    features: int = 16
    widths: tuple[int, ...] = (32, 64, 128)
    num_residual_blocks: int = 3
    num_scales: int = 2
    filter_size: int = 5

    def __post_init__(self) -> None:
        if min(self.features, self.num_scales, self.num_residual_blocks, len(self.widths), *self.widths) < 1:
            raise InputError("DWDN: features, widths, num_residual_blocks and num_scales must be 1 or more")
        if self.filter_size < 3 or self.filter_size % 2 == 0:
            raise InputError(f"DWDN: filter_size must be odd and 3 or more, got {self.filter_size}")

    @property
    def multiple(self) -> int:
        """What the sides of the image that is refined must divide by."""
        return 2 ** (self.num_scales - 1 + len(self.widths) - 1)


class Stage(nn.Module):
    """An entry, residual blocks ``x + conv(relu(conv(x)))``, and an exit; entry and exit are rectified.

    Attributes:
      channels: inside.
      config: sizes.
      entry_stride: stride of the convolution at the entry, or 0 for none.
      up: channels of the doubling transposed 3×3 convolution at the exit, or 0 for none.
      in_loop: see :func:`jaxdeblur.networks.teachers.zero_padded.conv`.
    """

    channels: int
    config: DwdnConfig
    entry_stride: int = 0
    up: int = 0
    in_loop: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[..., H, W, C]`` → ``[..., H', W', channels or up]``."""
        size, in_loop = self.config.filter_size, self.in_loop
        if self.entry_stride:
            image = nn.relu(
                Conv(self.channels, size, self.entry_stride, start="keep_first", in_loop=in_loop, name="entry")(image)
            )
        for block in range(self.config.num_residual_blocks):
            inner = nn.relu(Conv(self.channels, size, in_loop=in_loop, name=f"block{block}_first")(image))
            image = image + Conv(self.channels, size, start="zero", in_loop=in_loop, name=f"block{block}_second")(inner)
        if self.up:
            image = nn.relu(Conv(self.up, 3, transposed=True, start="faint_first", name="up")(image))
        return image


class Dwdn(nn.Module):
    """The network, on one channel.

    Attributes:
      config: sizes.
      in_loop: see :func:`jaxdeblur.networks.teachers.zero_padded.conv`.
    """

    config: DwdnConfig = DwdnConfig()
    in_loop: bool = False

    @nn.compact
    def __call__(self, blurry: jax.Array, kernel: jax.Array) -> jax.Array:
        """Restores grey images.

        Args:
          blurry: ``[..., H, W]`` in [0, 1], any size.
          kernel: ``[h, w]``, of true convolution, summing to one.

        Returns:
          ``[..., H, W]``; not clipped.
        """
        config, in_loop = self.config, self.in_loop
        height, width = blurry.shape[-2:]
        features = Stage(config.features, config, entry_stride=1, in_loop=in_loop, name="features")(blurry[..., None])
        clear = _extend_to_multiple(deconvolve_features(features, kernel), config.multiple)

        top = config.widths[0]
        pairs = list(enumerate(zip(config.widths[:-1], config.widths[1:], strict=True), start=1))
        encoders = [Stage(wide, config, entry_stride=2, in_loop=in_loop, name=f"encoder{n}") for n, (_, wide) in pairs]
        decoders = [Stage(wide, config, up=narrow, in_loop=in_loop, name=f"decoder{n}") for n, (narrow, wide) in pairs]
        out = Stage(top, config, in_loop=in_loop, name="out")

        refined: jax.Array | None = None
        for scale in range(config.num_scales):
            entry = _halve(clear, times=config.num_scales - 1 - scale)
            if refined is not None:
                entry = jnp.concatenate([entry, layers.upsample_bilinear(refined)], axis=-1)
            path = [Stage(top, config, entry_stride=1, in_loop=in_loop, name=f"in{scale + 1}")(entry)]
            for encoder in encoders:
                path.append(encoder(path[-1]))
            deeper = path.pop()
            for decoder in reversed(decoders):
                deeper = decoder(deeper) + path.pop()
            refined = out(deeper)
        assert refined is not None
        image = Conv(1, config.filter_size, start="keep_first", in_loop=in_loop, name="image")(refined)
        return image[..., :height, :width, 0]


def restore(params: Params, image: jax.Array, kernel: jax.Array, *, in_loop: bool = False) -> jax.Array:
    """Restores the image behind a blurry one of known kernel; pure, so it can be compiled, mapped and differentiated.

    Args:
      params: as :func:`jaxdeblur.networks.teachers.weights.load_teacher` gives them.
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], any size; the channels of a colour image are restored one by one.
      kernel: ``[h, w]``, of true convolution (``image ≈ kernel * sharp``), summing to one.
      in_loop: a gradient is taken through the answer inside a loop: the same numbers, computed in another way.

    Returns:
      The shape of ``image``; not clipped.
    """
    chex.assert_rank(image, {2, 3})
    chex.assert_rank(kernel, 2)
    module = Dwdn(config_of(params), in_loop)
    channels = image if image.ndim == 2 else jnp.moveaxis(image, -1, 0)
    restored: Any = module.apply({"params": params}, channels, kernel)
    return restored if image.ndim == 2 else jnp.moveaxis(restored, 0, -1)


def deconvolve_features(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Wiener deconvolution of every channel, each with its own noise-to-signal ratio.

    ``F(clear) = conj(K) F(features) / (|K|² + r)``, on a support widened on each side by the kernel's size, the edge repeated,
    with r from :func:`noise_to_signal` on that support.

    Args:
      features: ``[..., H, W, C]``.
      kernel: ``[h, w]``, of true convolution.

    Returns:
      ``[..., H, W, C]``.
    """
    height, width = features.shape[-3:-1]
    rows, columns = kernel.shape
    channels = jnp.moveaxis(features, -1, -3)
    lead = [(0, 0)] * (channels.ndim - 2)
    padded = jnp.pad(channels, [*lead, (rows, rows), (columns, columns)], mode="edge")
    shape = (padded.shape[-2], padded.shape[-1])
    spectrum = centred_kernel_spectrum(kernel, shape)
    filtered = jnp.conj(spectrum) / (jnp.abs(spectrum) ** 2 + noise_to_signal(padded))
    clear = jnp.fft.irfft2(jnp.fft.rfft2(padded) * filtered, shape)
    return jnp.moveaxis(clear[..., rows : rows + height, columns : columns + width], -3, -1)


def noise_to_signal(channels: jax.Array) -> jax.Array:
    """The noise-to-signal ratio of channels, from what a 3×3 median takes away: ``(8/30) · var(median(c) − c) / std(c)``.

    Args:
      channels: ``[..., H, W]``, at least 2×2.

    Returns:
      ``[..., 1, 1]``.
    """
    residual = _median3x3(channels) - channels
    noise = jnp.var(residual, axis=(-2, -1), ddof=1, keepdims=True)
    variance = jnp.var(channels, axis=(-2, -1), ddof=1, keepdims=True)
    return _NOISE_SHARE * noise / jnp.sqrt(jnp.maximum(variance, _SMALLEST_STD**2))


def config_of(params: Params) -> DwdnConfig:
    """The sizes that a set of parameters was made for.

    Args:
      params: of :class:`Dwdn`.

    Raises:
      InputError: they are no parameters of a DWDN.
    """
    try:
        entry = params["features"]["entry"]["kernel"]
        encoders = sum(name.startswith("encoder") for name in params)
        widths = [np.shape(params["in1"]["entry"]["kernel"])[-1]]
        widths += [np.shape(params[f"encoder{level}"]["entry"]["kernel"])[-1] for level in range(1, encoders + 1)]
        return DwdnConfig(
            features=np.shape(entry)[-1],
            widths=tuple(widths),
            num_residual_blocks=sum(name.endswith("_first") for name in params["features"]),
            num_scales=sum(name.startswith("in") for name in params),
            filter_size=np.shape(entry)[0],
        )
    except (KeyError, TypeError, IndexError, AttributeError):
        raise InputError("these parameters are not of a DWDN: convert or train a set anew") from None


def _median3x3(channels: jax.Array) -> jax.Array:
    """The median of the 3×3 pixels around each, borders mirrored: ``[..., H, W]`` → the same shape."""
    height, width = channels.shape[-2:]
    padded = layers.pad_reflect(channels[..., None])[..., 0]
    nine = [padded[..., row : row + height, column : column + width] for row in range(3) for column in range(3)]
    for low, high in _MEDIAN_EXCHANGES:
        nine[low], nine[high] = jnp.minimum(nine[low], nine[high]), jnp.maximum(nine[low], nine[high])
    return nine[4]


def _halve(image: jax.Array, *, times: int) -> jax.Array:
    """Means over 2×2 pixels, ``times`` times: ``[..., H, W, C]`` → ``[..., H/2ⁿ, W/2ⁿ, C]``."""
    for _ in range(times):
        *lead, height, width, channels = image.shape
        image = image.reshape(*lead, height // 2, 2, width // 2, 2, channels).mean((-4, -2))
    return image


def _extend_to_multiple(image: jax.Array, multiple: int) -> jax.Array:
    """Repeats the last row and column until both sides of ``[..., H, W, C]`` divide by ``multiple``."""
    missing = [(0, -side % multiple) for side in image.shape[-3:-1]]
    return jnp.pad(image, [*[(0, 0)] * (image.ndim - 3), *missing, (0, 0)], mode="edge")
