"""Every setting of a run as frozen, hashable dataclasses, checked when they are built.

A :class:`Config` says what happens along *observe → initialise → optimise → finish*: how the kernel is first guessed
(:class:`InitialiserConfig`), whether and how an untrained deep prior is fitted (:class:`FitConfig`), and how the final image
is made (:class:`NonblindConfig`, ``final``). Methods are values of it, kept in :mod:`jaxdeblur.presets`.
"""

from jaxdeblur.config.checks import check_kernel_size
from jaxdeblur.config.classical import SMOOTHNESS_RANGE, InitialiserConfig, NonblindConfig
from jaxdeblur.config.fit import (
    LOSS_TERMS,
    TEACHER_TERMS,
    FitConfig,
    LossInterval,
    LossTerm,
    Schedule,
    StoppingConfig,
    Update,
    constant,
)
from jaxdeblur.config.networks import (
    ImageGeneratorConfig,
    KernelGeneratorConfig,
    KernelLogitsConfig,
    KernelMlpConfig,
    SkipNetConfig,
    TeacherConfig,
    UNetConfig,
)
from jaxdeblur.config.run import (
    COMPRESSED_NOISE_STD,
    FINALS,
    HIGHLIGHTS_PHASE,
    SEARCH_PHASE,
    SMALLEST_SIDE,
    WITHOUT_CLIPPED,
    Config,
    Final,
)
from jaxdeblur.config.shake import BLURS, Blur, ShakeConfig

__all__ = [
    "BLURS",
    "COMPRESSED_NOISE_STD",
    "FINALS",
    "HIGHLIGHTS_PHASE",
    "LOSS_TERMS",
    "SEARCH_PHASE",
    "SMALLEST_SIDE",
    "SMOOTHNESS_RANGE",
    "TEACHER_TERMS",
    "WITHOUT_CLIPPED",
    "Blur",
    "Config",
    "Final",
    "FitConfig",
    "ImageGeneratorConfig",
    "InitialiserConfig",
    "KernelGeneratorConfig",
    "KernelLogitsConfig",
    "KernelMlpConfig",
    "LossInterval",
    "LossTerm",
    "NonblindConfig",
    "Schedule",
    "ShakeConfig",
    "SkipNetConfig",
    "StoppingConfig",
    "TeacherConfig",
    "UNetConfig",
    "Update",
    "check_kernel_size",
    "constant",
]
