"""A pre-trained network with its weights, as the losses and the pipeline use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdeblur.networks.teachers import dmphn, dwdn


@flax.struct.dataclass
class Teacher:
    """A frozen network that maps a blurry image to a sharper one; hand it to compiled functions like any array.

    Attributes:
      name: ``dmphn`` or ``dwdn``.
      params: its weights, see :func:`jaxdeblur.networks.teachers.weights.load_teacher`.
      kernel: ``[h, w]`` that ``dwdn`` deconvolves with; None for the estimate of the moment.
    """

    name: str = flax.struct.field(pytree_node=False)
    params: Mapping[str, Any]
    kernel: jax.Array | None = None

    @property
    def follows_estimate(self) -> bool:
        """Whether the answer depends on the kernel's estimate, and has to be asked for anew at each step."""
        return self.name == "dwdn" and self.kernel is None

    def restore(self, image: jax.Array, estimate: jax.Array, *, in_loop: bool = True) -> jax.Array:
        """Restores ``image``; gradients pass through to the image, not to the kernel.

        Args:
          image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
          estimate: ``[h, w]``, the kernel as estimated so far.
          in_loop: whether this is part of a compiled loop, where another form of convolution is faster on CPUs.

        Returns:
          The shape of ``image``; not clipped.
        """
        if self.name == "dmphn":
            return dmphn.restore(self.params, image, in_loop=in_loop)
        kernel = lax.stop_gradient(estimate) if self.kernel is None else self.kernel
        return dwdn.restore(self.params, image, kernel, in_loop=in_loop)


_compiled_restore = jax.jit(Teacher.restore, static_argnames="in_loop")


def restoration(teacher: Teacher, image: np.ndarray) -> np.ndarray:
    """What a teacher that needs no estimate makes of ``image``, ``[H, W]`` or ``[H, W, 3]``: the same shape, not clipped."""
    assert not teacher.follows_estimate
    # No estimate is asked for, so any array stands for it.
    return np.asarray(_compiled_restore(teacher, jnp.asarray(image), jnp.ones((1, 1)), in_loop=False))
