"""The last step alone: a kernel is at hand, and the image is to be smoother, crisper or nearer to the blurry one."""

from __future__ import annotations

import jax
import numpy as np

from jaxdeblur.config import Config, Final
from jaxdeblur.optimise.loop import Progress
from jaxdeblur.pipeline.result import Result
from jaxdeblur.pipeline.stages import deblur
from jaxdeblur.presets import PRESETS


def refinish(
    image: np.ndarray | jax.Array,
    kernel: np.ndarray | jax.Array,
    config: Config = PRESETS["fast"],
    *,
    smoothness: float | None = None,
    amount: float | None = None,
    final: Final | None = None,
    progress: Progress | None = None,
) -> Result:
    """Makes the final image anew from a kernel, such as that of an earlier :class:`Result`; nothing is estimated.

    Args:
      image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], the blurry one.
      kernel: ``[h, w]`` of a true convolution, odd sides, non-negative.
      config: of the earlier run; its deep prior and its pre-trained network are left out, since their images cannot be made
        smoother or crisper: a final image that was theirs becomes that of ``auto``.
      smoothness: factor on the prior's weight, in :data:`~jaxdeblur.config.SMOOTHNESS_RANGE`; None for the config's.
      amount: share of the restored image, in [0, 1]; None for the config's.
      final: the non-blind method; None for the config's.
      progress: as for :func:`~jaxdeblur.deblur`.

    Returns:
      What ``deblur`` returns for a known kernel.

    Raises:
      InputError: the image, the kernel or an option cannot be used.
    """
    settings = config.last_step_only().override(smoothness=smoothness, amount=amount, final=final)
    # Nothing is random in it.
    return deblur(image, settings, key=jax.random.key(0), kernel=kernel, progress=progress)
