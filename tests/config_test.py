import dataclasses
import re

import pytest

from jaxdeblur.config import (
    Config,
    FitConfig,
    ImageGeneratorConfig,
    InitialiserConfig,
    KernelGeneratorConfig,
    LossInterval,
    NonblindConfig,
    check_kernel_size,
)
from jaxdeblur.errors import InputError

MSE = (("mse", 1.0),)
REFUSED = {
    "num_scales": lambda: ImageGeneratorConfig(num_scales=0),
    "channels": lambda: ImageGeneratorConfig(channels=0),
    "skip_channels": lambda: ImageGeneratorConfig(skip_channels=-1),
    "latent_channels": lambda: ImageGeneratorConfig(latent_channels=0),
    "non_local_channels": lambda: ImageGeneratorConfig(non_local_channels=0),
    "unknown kernel generator 'unet'": lambda: KernelGeneratorConfig(name="unet"),
    "latent_size": lambda: KernelGeneratorConfig(latent_size=0),
    "start must be 0 or more": lambda: LossInterval(-1, MSE),
    "at least one term": lambda: LossInterval(0, ()),
    "unknown loss term 'ssim'": lambda: LossInterval(0, (("ssim", 1.0),)),
    "num_iterations must be": lambda: FitConfig(num_iterations=0),
    "chunk_size": lambda: FitConfig(chunk_size=0),
    "unknown update": lambda: FitConfig(update="both"),
    "got starts []": lambda: FitConfig(loss_intervals=()),
    "got starts [5]": lambda: FitConfig(loss_intervals=(LossInterval(5, MSE),)),
    "got starts [0, 9, 9]": lambda: FitConfig(loss_intervals=tuple(LossInterval(start, MSE) for start in (0, 9, 9))),
    "decay_steps must increase": lambda: FitConfig(decay_steps=(200, 100)),
    "at least one gradient weight": lambda: InitialiserConfig(gradient_weights=()),
    "weights must be positive": lambda: InitialiserConfig(gradient_weights=(1e-3, 0.0)),
    "level_iterations": lambda: InitialiserConfig(level_iterations=0),
    "noise_variance must be positive": lambda: InitialiserConfig(noise_variance=0.0),
    "at most first_noise_variance": lambda: InitialiserConfig(noise_variance=1e-3, first_noise_variance=1e-4),
    "64": lambda: InitialiserConfig(guess_side=63),
    "sparse_weight": lambda: NonblindConfig(sparse_weight=0.0),
    "tile_side must be 256 or more": lambda: NonblindConfig(tile_side=255),
    "kernel size 4 cannot be used": lambda: Config(kernel_size=4),
    "kernel size -3 cannot be used": lambda: Config(kernel_size=-3),
    "kernel size 1 cannot be used": lambda: check_kernel_size(1),
    "num_restarts must be": lambda: Config(num_restarts=0),
    "unknown final 'best'": lambda: Config(final="best"),
    "nothing estimates the kernel": lambda: Config(initialiser=None),
    "fits none": lambda: Config(final="generator"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(reason):
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        REFUSED[reason]()
    assert "\n" not in str(caught.value)


def test_configs_are_values():
    one, other = Config(fit=FitConfig()), Config(fit=FitConfig())
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.kernel_size = 3


class TestOverride:
    config = Config(name="mine", fit=FitConfig(num_iterations=100, image_learning_rate=0.5), kernel_size=9)

    def test_nothing_given_changes_nothing(self):
        assert self.config.override() == self.config

    def test_what_is_given_is_replaced_and_all_else_kept(self):
        changed = self.config.override(kernel_size=21, num_iterations=7, num_restarts=3, final="sparse")
        assert (changed.kernel_size, changed.num_restarts, changed.final) == (21, 3, "sparse")
        assert changed.fit == dataclasses.replace(self.config.fit, num_iterations=7)
        assert (changed.name, changed.initialiser, changed.nonblind) == ("mine", self.config.initialiser, self.config.nonblind)
        assert self.config.kernel_size == 9

    @pytest.mark.parametrize("change", [{"kernel_size": 8}, {"num_iterations": 0}, {"num_restarts": 0}, {"final": "nicest"}])
    def test_values_are_checked_again(self, change):
        with pytest.raises(InputError):
            self.config.override(**change)

    @pytest.mark.parametrize("change", [{"num_iterations": 10}, {"num_restarts": 2}, {"final": "generator"}])
    def test_a_preset_without_a_deep_prior_says_so(self, change):
        with pytest.raises(InputError, match="fast") as caught:
            Config(name="fast").override(**change)
        assert "deep prior" in str(caught.value)
