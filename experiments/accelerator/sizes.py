"""How large things are: as published, or toys that go through the same code in seconds on a processor."""

from __future__ import annotations

import dataclasses

from jaxdeblur.config import Config, FitConfig, InitialiserConfig, KernelMlpConfig, SkipNetConfig, UNetConfig
from jaxdeblur.networks.teachers.dwdn import DwdnConfig
from jaxdeblur.presets import PRESETS

_TOY_INITIALISER = InitialiserConfig(
    gradient_weights=(8e-3,),
    support_shares=(1.0,),
    patient_weights=(),
    guess_iterations=3,
    num_finalists=1,
    finalist_iterations=3,
    refine_iterations=3,
    fine_iterations=3,
    softness_stds=(0.4,),
    vary_iterations=3,
    descents=1,
    correction_share=0.0,
)
# Long enough that in a run of one chunk no two changes of a schedule fall on one step, which would be another program.
_TOY_CHUNK = 10


def preset(name: str, *, toy: bool) -> Config:
    """A preset as it is, or with everything in it made small."""
    config = PRESETS[name]
    if not toy:
        return config
    fit = None if config.fit is None else _toy_fit(config.fit)
    initialiser = config.initialiser and _TOY_INITIALISER
    return dataclasses.replace(config, fit=fit, initialiser=initialiser)


def _toy_fit(fit: FitConfig) -> FitConfig:
    image, kernel = fit.image_generator, fit.kernel_generator
    unet = UNetConfig(num_levels=2, channels=4, latent_channels=2)
    if isinstance(image, SkipNetConfig):
        image = SkipNetConfig(num_scales=1, channels=4, skip_channels=2, latent_channels=2, non_local=False)
    else:
        image = unet
    if isinstance(kernel, KernelMlpConfig):
        kernel = dataclasses.replace(kernel, hidden_sizes=(20,))
    elif isinstance(kernel, UNetConfig):
        kernel = unet
    steps = dataclasses.replace(fit.stretched(2 * _TOY_CHUNK), chunk_size=_TOY_CHUNK)
    return dataclasses.replace(steps, image_generator=image, kernel_generator=kernel)


def image_side(*, toy: bool) -> int:
    """Side of images that are made where there is no benchmark set."""
    return 64 if toy else 255


def kernel_size(size: int, *, toy: bool) -> int:
    """A kernel's side."""
    return min(size, 7 if size < 20 else 9) if toy else size


@dataclasses.dataclass(frozen=True)
class Speed:
    """What steps are timed on: ``(H, W)``, the kernel's side, steps of a turn, turns."""

    shape: tuple[int, int]
    kernel_size: int
    steps: int
    turns: int


def speed(*, large: bool, toy: bool) -> Speed:
    """The image whose steps are timed."""
    if toy:
        return Speed((48, 64), 9, 2, 2) if large else Speed((48, 48), 7, 2, 2)
    return Speed((768, 1024), 31, 5, 5) if large else Speed((255, 255), 17, 20, 5)


@dataclasses.dataclass(frozen=True)
class Training:
    """How DWDN is trained."""

    model: DwdnConfig
    batch_size: int
    crop: int
    kernel_sizes: tuple[int, int]
    seconds: float


def training(*, toy: bool) -> Training:
    """The training's sizes; the number of steps is what fits into its seconds."""
    if toy:
        return Training(DwdnConfig(features=2, widths=(3, 4), num_residual_blocks=1, num_scales=1), 2, 32, (5, 7), 3.0)
    return Training(DwdnConfig(), 16, 224, (7, 31), 480.0)
