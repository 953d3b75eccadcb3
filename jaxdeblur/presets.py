"""The methods by name: each preset is data, a :class:`~jaxdeblur.config.Config`."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from jaxdeblur.config import Config, FitConfig, ImageGeneratorConfig, KernelGeneratorConfig, LossInterval

# The default: ours, and classical all the way. The kernel is guessed many times coarse to fine under an L0 prior (Xu, Zheng,
# Jia, CVPR 2013), the guesses are refined and judged by marginal likelihood (Wipf, Zhang, JMLR 2014), and the picture is
# restored under a sparse prior (Levin et al., SIGGRAPH 2007).
#   python -m jaxdeblur.main --image=photo.jpg
# Measured figures and times: README.md. A deep prior is left to the other presets: where it was tried, it helped some pictures
# and hurt others, for more seconds than all the rest on two CPU cores.
_FAST = Config(name="fast")

# The same, then a narrow deep prior fitted from that kernel on. Of the two kernels the likelier one makes the final picture.
#   python -m jaxdeblur.main --image=photo.jpg --preset=deep
_DEEP = Config(
    name="deep",
    fit=FitConfig(
        image_generator=ImageGeneratorConfig(channels=16, non_local=False),
        kernel_generator=KernelGeneratorConfig(name="logits"),
        num_iterations=400,
        loss_intervals=(LossInterval(0, (("mse", 1.0),)), LossInterval(130, (("one_minus_ssim", 1.0),))),
        decay_steps=(240, 320),
        kernel_learning_rate=1e-2,
    ),
)

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

# The same with the public code's schedule for colour photographs: luma is restored, chroma kept.
#   python -m jaxdeblur.main --image=photo.png --preset=selfdeblur_colour --kernel_size=41
_SELFDEBLUR_COLOUR = dataclasses.replace(
    _SELFDEBLUR,
    name="selfdeblur_colour",
    fit=FitConfig(
        num_iterations=2500,
        loss_intervals=(LossInterval(0, (("mse", 1.0),)), LossInterval(500, (("one_minus_ssim", 1.0),))),
        decay_steps=(1600, 1900, 2200),
    ),
)

PRESETS = MappingProxyType({preset.name: preset for preset in (_FAST, _DEEP, _SELFDEBLUR, _SELFDEBLUR_COLOUR)})
