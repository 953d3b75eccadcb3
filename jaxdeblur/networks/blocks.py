"""Convolutions and normalisations with parameters, of which the generators are built.

Biases before a normalisation: the published networks carry one in every convolution, the normalisation that follows
cancels it. They are kept as parameters, so that weights map one to one and counts agree, and left out of the computation.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdeblur.networks import layers

_EPSILON = 1e-5


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√fan_in: the default of the published networks' framework, for weights and biases alike."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """1×1 or 3×3 convolution of ``[..., H, W, C]`` images.

    Attributes:
      channels: of the output.
      size: 1 or 3.
      stride: 1, or 2 with size 3.
      cancelled_bias: whether the bias is cancelled by what follows, and need not be added.
      zero_start: start from weights of zero, so that every pixel is alike at first.
    """

    channels: int
    size: int = 1
    stride: int = 1
    cancelled_bias: bool = True
    zero_start: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, input_gain: jax.Array | None = None) -> jax.Array:
        """Convolves ``image``, whose channels are first multiplied by ``input_gain [..., 1, 1, C]`` if given."""
        in_channels = image.shape[-1]
        init = nn.initializers.zeros if self.zero_start else uniform_fan_in(in_channels * self.size**2)
        shape = (in_channels, self.channels) if self.size == 1 else (self.size, self.size, in_channels, self.channels)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.channels,))
        if input_gain is not None:
            # On the weights, not on the image: the same product for a thousandth of the work.
            kernel = kernel * input_gain.reshape(in_channels, 1)
        if self.size == 1:
            result = layers.conv1x1(image, kernel)
        else:
            result = (layers.conv3x3 if self.stride == 1 else layers.conv3x3_stride2)(image, kernel)
        return result if self.cancelled_bias else result + bias


class Norm(nn.Module):
    """Per-channel spatial normalisation with learned scale and bias, then LeakyReLU (slope 1: none).

    Attributes:
      negative_slope: of the LeakyReLU.
      zero_scale: start from scale 0, so that the branch says nothing at first.
    """

    negative_slope: float = 1.0
    zero_scale: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[..., H, W, C]`` → the same shape."""
        channels = image.shape[-1]
        scale = self.param("scale", nn.initializers.zeros if self.zero_scale else nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return layers.normalise_activate(image, scale, bias, self.negative_slope, _EPSILON)


class NormGain(nn.Module):
    """The gain ``scale / √(var + ε)`` of a normalisation that a convolution and another normalisation follow.

    Its shift (mean and bias) is cancelled by the second normalisation, reflected borders included, so only the gain is left,
    and that can be applied to the convolution's weights: the normalised image is never made.
    """

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[H, W, C]`` → ``[1, 1, C]``."""
        scale = self.param("scale", nn.initializers.ones, (image.shape[-1],))
        self.param("bias", nn.initializers.zeros, (image.shape[-1],))
        _, variance = layers.spatial_moments(image)
        return scale * lax.rsqrt(variance + _EPSILON)


class Dropout(nn.Module):
    """Sets each feature to zero with a probability that may change from step to step, and scales the others up to match.

    The module draws from the ``dropout`` random stream.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014.
    """

    def __call__(self, image: jax.Array, rate: jax.Array | None) -> jax.Array:
        """``[H, W, C]`` → the same shape; ``rate`` in [0, 1) is a scalar, None leaves the image alone."""
        if rate is None:
            return image
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, image.shape)
        return jnp.where(kept, image / (1.0 - rate), 0.0)
