"""The methods by name: each preset is data, a :class:`~jaxdeblur.config.Config`."""

from __future__ import annotations

from types import MappingProxyType

from jaxdeblur.config import Config, FitConfig, LossInterval

# The default. Ours: classical all the way, because measured against the time it takes nothing else is close on two CPU cores
# (experiments/README.md). Levin im1-im3, kernel size unknown: see the README's table.
_FAST = Config(name="fast")

# SelfDeblur. Ren, Zhang, Wang, Hu, Zuo: "Neural blind deconvolution using deep priors", CVPR 2020,
# https://arxiv.org/abs/1908.02197; settings of its public code for grey images.
#   python -m jaxdeblur.main --image=photo.png --preset=selfdeblur --kernel_size=31
# Published: 33.07 dB / .931 over Levin's 32 images; 5000 steps, 4 minutes on a GPU and over an hour on two CPU cores.
_SELFDEBLUR = Config(
    name="selfdeblur",
    initialiser=None,
    fit=FitConfig(
        loss_intervals=(LossInterval(0, (("mse", 1.0),)), LossInterval(1000, (("one_minus_ssim", 1.0),))),
    ),
    final="generator",
)

PRESETS = MappingProxyType({preset.name: preset for preset in (_FAST, _SELFDEBLUR)})
