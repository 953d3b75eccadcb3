"""Settings of the untrained networks that make images and kernels, and of the pre-trained one that a method may use."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdeblur.config.checks import require, require_positive


@dataclasses.dataclass(frozen=True)
class SkipNetConfig:
    """The skip-connected encoder-decoder ("DIP skip net") of SelfDeblur.

    Attributes:
      name: tells the networks apart in a saved configuration.
      num_scales: how many times the resolution is halved.
      channels: width of the downward and upward paths.
      skip_channels: width of the skip branches.
      latent_channels: channels of the fixed random input.
      latent_scale: that input is uniform in [0, latent_scale].
      non_local: dot-product non-local blocks from the third scale on, as in SelfDeblur's public code.
      non_local_channels: inner width of those blocks.
      negative_slope: slope of the LeakyReLUs.
    """

    name: Literal["skip"] = "skip"
    num_scales: int = 5
    channels: int = 128
    skip_channels: int = 16
    latent_channels: int = 8
    latent_scale: float = 0.1
    non_local: bool = True
    non_local_channels: int = 64
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        require_positive(self, "skip net", "num_scales", "channels", "skip_channels", "latent_channels", "non_local_channels")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The U-Net of the Monte-Carlo method.

    Attributes:
      name: tells the networks apart in a saved configuration.
      num_levels: resolutions, the full one included.
      channels: width of every level.
      latent_channels: channels of the fixed random input.
      latent_scale: that input is uniform in [0, latent_scale].
      negative_slope: slope of the LeakyReLUs.
    """

    name: Literal["unet"] = "unet"
    num_levels: int = 6
    channels: int = 128
    latent_channels: int = 8
    latent_scale: float = 0.1
    negative_slope: float = 0.1

    def __post_init__(self) -> None:
        require(self.num_levels >= 2, f"U-Net: num_levels must be 2 or more, got {self.num_levels}")
        require_positive(self, "U-Net", "channels", "latent_channels")


@dataclasses.dataclass(frozen=True)
class KernelMlpConfig:
    """SelfDeblur's fully connected generator of the blur kernel.

    Attributes:
      name: tells the networks apart in a saved configuration.
      latent_size: length of the fixed random input.
      latent_scale: that input is uniform in [0, latent_scale].
      hidden_sizes: widths of the hidden layers (ReLU6 between them).
    """

    name: Literal["mlp"] = "mlp"
    latent_size: int = 200
    latent_scale: float = 0.1
    hidden_sizes: tuple[int, ...] = (1000,)

    def __post_init__(self) -> None:
        require_positive(self, "kernel MLP", "latent_size")
        require(all(size >= 1 for size in self.hidden_sizes), f"kernel MLP: bad hidden_sizes {self.hidden_sizes}")


@dataclasses.dataclass(frozen=True)
class KernelLogitsConfig:
    """No net for the kernel: its pixels before the softmax are the parameters, so that a known guess can be refined.

    Attributes:
      name: tells the networks apart in a saved configuration.
    """

    name: Literal["logits"] = "logits"


ImageGeneratorConfig = SkipNetConfig | UNetConfig
# A softmax over all pixels keeps kernels non-negative and summing to one, whichever network makes them.
KernelGeneratorConfig = KernelMlpConfig | KernelLogitsConfig | SkipNetConfig | UNetConfig


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """A pre-trained deblurring network.

    Attributes:
      name: ``dmphn`` (blind) or ``dwdn`` (deconvolves with a kernel).
      weights: file or folder of its weights; None as long as nobody has said where they are.
      kernel_source: where ``dwdn``'s kernel comes from: the ``classical`` initialiser, or the ``current`` estimate of the fit.
    """

    name: Literal["dmphn", "dwdn"] = "dmphn"
    weights: str | None = None
    kernel_source: Literal["classical", "current"] = "classical"

    def __post_init__(self) -> None:
        require(self.name in ("dmphn", "dwdn"), f"unknown teacher {self.name!r}: choose dmphn or dwdn")
        require(
            self.kernel_source in ("classical", "current"),
            f"unknown kernel_source {self.kernel_source!r}: choose classical or current",
        )
