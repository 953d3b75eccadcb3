"""Settings of a blur that varies over the image."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from jaxdeblur.config.checks import require

Blur = Literal["uniform", "varying", "auto"]
BLURS: tuple[str, ...] = get_args(Blur)


@dataclasses.dataclass(frozen=True)
class ShakeConfig:
    """The density of a turning camera's poses, from which the kernels of all places follow.

    See :mod:`jaxdeblur.classical.shake` for the equations.

    Attributes:
      largest_angle: of the roll either way, in degrees.
      angle_step: by which a corner of the image moves from one angle to the next, in pixels.
      scales: of the image, as shares of its size, at which the density is refined, one after the other.
      iterations: variational ones at each of them.
      patch_side: of the patches that are looked at, in pixels at the last scale, or three times the kernel's side if that is
        more.
      num_patches: at most so many of them.
      largest_side: images larger than this are reduced to it for the estimate.
      node_spacing: pixels, or more for large images, between the middles of the parts of the image with a kernel each.
      smallest_gain: by how much the varying model must lower the negative log evidence per pixel for ``auto`` to take it.
    """

    largest_angle: float = 1.2
    angle_step: float = 1.0
    scales: tuple[float, ...] = (0.5, 1.0)
    iterations: tuple[int, ...] = (60, 30)
    patch_side: int = 128
    num_patches: int = 24
    largest_side: int = 1024
    node_spacing: int = 80
    smallest_gain: float = 0.02

    def __post_init__(self) -> None:
        require(0 < self.largest_angle <= 10, f"shake: largest_angle must lie in (0, 10] degrees, got {self.largest_angle}")
        require(self.angle_step > 0, "shake: angle_step must be positive")
        require(
            len(self.scales) == len(self.iterations) > 0 and all(0 < scale <= 1 for scale in self.scales),
            "shake: give as many iterations as scales, and scales in (0, 1]",
        )
        require(min(self.iterations) >= 0, "shake: iterations must not be negative")
        require(
            self.patch_side >= 32 and self.num_patches >= 1, "shake: give patches of 32 pixels or more a side, and one at least"
        )
        require(self.largest_side >= 128 and self.node_spacing >= 16, "shake: largest_side or node_spacing is too small")
