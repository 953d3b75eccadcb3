"""A pre-trained network with its weights, as the losses and the pipeline use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.networks.teachers import dmphn, dwdn


@flax.struct.dataclass
class Teacher:
    """A frozen network that maps a blurry image to a sharper one; hand it to compiled functions like any array.

    Attributes:
      name: ``dmphn`` or ``dwdn``.
      params: its weights, see :func:`jaxdeblur.networks.teachers.weights.load_teacher`.
    """

    name: str = flax.struct.field(pytree_node=False)
    params: Mapping[str, Any]

    @property
    def needs_kernel(self) -> bool:
        """Whether the answer depends on a kernel."""
        return self.name == "dwdn"

    def restore(self, image: jax.Array, kernel: jax.Array, *, in_loop: bool = True) -> jax.Array:
        """Restores ``image``.

        Args:
          image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
          kernel: ``[h, w]`` that ``dwdn`` deconvolves with.
          in_loop: whether this is part of a compiled loop, where another form of convolution is faster on CPUs.

        Returns:
          The shape of ``image``; not clipped.
        """
        if self.name == "dmphn":
            return dmphn.restore(self.params, image, in_loop=in_loop)
        return dwdn.restore(self.params, image, kernel, in_loop=in_loop)


_compiled_restore = jax.jit(Teacher.restore, static_argnames="in_loop")


def restoration(teacher: Teacher, image: np.ndarray, kernel: np.ndarray | jax.Array | None = None) -> np.ndarray:
    """What a teacher makes of ``image``, ``[H, W]`` or ``[H, W, 3]``: the same shape, not clipped.

    Args:
      teacher: the network.
      image: in [0, 1].
      kernel: ``[h, w]``; only a teacher that needs none goes without.
    """
    assert kernel is not None or not teacher.needs_kernel
    # Any array stands for a kernel that is not used.
    used = jnp.ones((1, 1)) if kernel is None else jnp.asarray(kernel)
    return np.asarray(_compiled_restore(teacher, jnp.asarray(image), used, in_loop=False))
