"""Generators of the blur kernel alone. What they return is its logits: see :mod:`jaxdeblur.networks.registry`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.config import KernelMlpConfig
from jaxdeblur.networks.blocks import uniform_fan_in

# Added to a given kernel before the logarithm: as small as still lets gradients wake a zero pixel.
LOGITS_FLOOR = 1e-4


class KernelMlp(nn.Module):
    """SelfDeblur's fully connected net: latent → Dense, ReLU6 (per hidden layer) → Dense.

    Attributes:
      config: widths.
      kernel_shape: ``(h, w)``.

    Source: Ren et al., "Neural blind deconvolution using deep priors", CVPR 2020, https://arxiv.org/abs/1908.02197.
    """

    config: KernelMlpConfig
    kernel_shape: tuple[int, int]

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """``[latent_size]`` → logits ``[h, w]``."""
        value = latent
        for index, size in enumerate(self.config.hidden_sizes):
            value = jax.nn.relu6(self._dense(value, size, f"hidden{index}"))
        return self._dense(value, self.kernel_shape[0] * self.kernel_shape[1], "out").reshape(self.kernel_shape)

    def _dense(self, value: jax.Array, size: int, name: str) -> jax.Array:
        init = uniform_fan_in(value.shape[-1])
        return nn.Dense(size, kernel_init=init, bias_init=init, name=name)(value)


class KernelLogits(nn.Module):
    """No net at all: the pixels before the softmax are the parameters (uniform kernel at first).

    Attributes:
      kernel_shape: ``(h, w)``.
    """

    kernel_shape: tuple[int, int]

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """``[0]`` (there is nothing to feed) → logits ``[h, w]``."""
        del latent
        return self.param("logits", nn.initializers.zeros, self.kernel_shape)


def logits_of(kernel: jax.Array) -> jax.Array:
    """Logits ``[..., h, w]`` whose softmax is ``kernel [..., h, w]`` plus :data:`LOGITS_FLOOR` of its largest pixel."""
    peak = jnp.max(kernel, axis=(-2, -1), keepdims=True)
    return jnp.log(jnp.maximum(kernel, 0.0) / peak + LOGITS_FLOOR)
