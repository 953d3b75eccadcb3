"""Settings of a blur that varies over the image."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from jaxdeblur.config.checks import require

Blur = Literal["uniform", "varying", "auto"]
BLURS: tuple[str, ...] = get_args(Blur)


@dataclasses.dataclass(frozen=True)
class ShakeConfig:
    """A turning camera: a kernel, the camera's angle at each of its shifts, and its perspective.

    See :mod:`jaxdeblur.classical.shake` for the equations. The estimate goes in rounds; the settings that have several values
    have one for each.

    Attributes:
      scales: of the image in each round, as shares of its size.
      degrees: of the polynomial that the angle is of the shift.
      descents: steps by which its coefficients and the perspective descend the negative log evidence, at most.
      iterations: variational ones by which the kernel is refined thereafter.
      patch_side: of the patches that are looked at, in pixels at full size, or twice the kernel's side if that is more.
      num_patches: at most so many of them.
      window_side: of the windows in which kernels to begin with are estimated, in pixels, or five times the kernel's side if
        that is more.
      num_windows: at most so many of them; with 0 only the kernel of the whole image begins.
      kernels_per_window: the likeliest of each that begin.
      num_starts: of all kernels to begin with, how many go through half of the rounds at the first scale, those that explain
        the image best after a first descent; the best third of them goes through the others.
      largest_side: images larger than this are reduced to it for the estimate.
      largest_kernel: images are also reduced until the extent of their one kernel is no more than this, in pixels: the time
        grows as its fourth power.
      node_spacing: pixels, or more for large images, between the middles of the parts of the image with a kernel each.
      smallest_gain: by how much the varying model must lower the negative log evidence per pixel for ``auto`` to take it.
      smallest_corner_std: and by how much the kernels of the image's corners must differ from that of its middle, a standard
        deviation over the exposure in pixels at the size of the estimate: smaller turns are not worth what kernels that vary
        are less certain, and without a turn another start has merely led to another kernel.
      smallest_agreement: and how well the parts of the image must agree about the turn: the sum of what it lowers the negative
        log evidence of each by, as a share of the sum of what it changes it by.
    """

    scales: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5, 0.5, 1.0)
    degrees: tuple[int, ...] = (1, 1, 2, 2, 3, 3)
    descents: tuple[int, ...] = (8, 6, 8, 6, 8, 6)
    iterations: tuple[int, ...] = (30, 30, 30, 30, 30, 40)
    patch_side: int = 128
    num_patches: int = 12
    window_side: int = 192
    num_windows: int = 6
    kernels_per_window: int = 2
    num_starts: int = 6
    largest_side: int = 1024
    largest_kernel: int = 49
    node_spacing: int = 80
    smallest_gain: float = 0.01
    smallest_corner_std: float = 1.0
    smallest_agreement: float = 0.9

    def __post_init__(self) -> None:
        rounds = {len(self.scales), len(self.degrees), len(self.descents), len(self.iterations)}
        require(len(rounds) == 1 and len(self.scales) > 0, "shake: give as many scales as degrees, descents and iterations")
        require(all(0 < scale <= 1 for scale in self.scales), "shake: scales must lie in (0, 1]")
        require(
            min(self.degrees) >= 1 and tuple(sorted(self.degrees)) == self.degrees,
            "shake: degrees must be 1 or more and must not fall",
        )
        require(min(self.descents) >= 0 and min(self.iterations) >= 0, "shake: descents and iterations must be 0 or more")
        require(self.patch_side >= 32 and self.num_patches >= 1, "shake: give at least one patch, of 32 pixels or more a side")
        require(self.window_side >= 64, "shake: window_side must be 64 pixels or more")
        require(self.num_windows >= 0, "shake: num_windows must not be negative")
        require(self.kernels_per_window >= 1 and self.num_starts >= 1, "shake: num_starts or kernels_per_window is below 1")
        require(self.largest_side >= 128 and self.node_spacing >= 16, "shake: largest_side or node_spacing is too small")
        require(self.largest_kernel >= 9, "shake: largest_kernel must be 9 or more")
