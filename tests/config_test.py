import dataclasses
import re

import pytest

from jaxdeblur.config import (
    Config,
    FitConfig,
    InitialiserConfig,
    KernelMlpConfig,
    LossInterval,
    NonblindConfig,
    SkipNetConfig,
    StoppingConfig,
    UNetConfig,
    check_kernel_size,
)
from jaxdeblur.errors import InputError

MSE = (("mse", 1.0),)
REFUSED = {
    "num_scales": lambda: SkipNetConfig(num_scales=0),
    "channels": lambda: SkipNetConfig(channels=0),
    "skip_channels": lambda: SkipNetConfig(skip_channels=-1),
    "latent_channels": lambda: SkipNetConfig(latent_channels=0),
    "non_local_channels": lambda: SkipNetConfig(non_local_channels=0),
    "num_levels": lambda: UNetConfig(num_levels=1),
    "hidden_sizes": lambda: KernelMlpConfig(hidden_sizes=(0,)),
    "latent_size": lambda: KernelMlpConfig(latent_size=0),
    "start must be 0 or more": lambda: LossInterval(-1, MSE),
    "at least one term": lambda: LossInterval(0, ()),
    "unknown loss term 'ssim'": lambda: LossInterval(0, (("ssim", 1.0),)),
    "num_iterations must be": lambda: FitConfig(num_iterations=0),
    "chunk_size": lambda: FitConfig(chunk_size=0),
    "unknown update": lambda: FitConfig(update="both"),
    "got starts []": lambda: FitConfig(loss_intervals=()),
    "got starts [5]": lambda: FitConfig(loss_intervals=(LossInterval(5, MSE),)),
    "got starts [0, 9, 9]": lambda: FitConfig(loss_intervals=tuple(LossInterval(start, MSE) for start in (0, 9, 9))),
    "a term stands twice": lambda: LossInterval(0, (("mse", 1.0), ("mse", 2.0))),
    "num_samples": lambda: FitConfig(num_samples=0),
    "dropout_rate must start at step 0": lambda: FitConfig(dropout_rate=((3, 0.1),)),
    "dropout_rate: values out of range": lambda: FitConfig(dropout_rate=((0, 1.0),)),
    "input_noise_std: values out of range": lambda: FitConfig(input_noise_std=((0, -0.1),)),
    "need a convolutional kernel generator": lambda: FitConfig(kernel_dropout_rate=((0, 0.1),)),
    "update 'sequential' needs a kernel generator": lambda: FitConfig(kernel_generator=None, update="sequential"),
    "num_posterior_samples=4 cannot be used": lambda: Config(num_posterior_samples=4),
    "num_posterior_samples=1 cannot be used": lambda: Config(fit=FitConfig(), num_posterior_samples=1),
    "decay_steps must increase": lambda: FitConfig(decay_steps=(200, 100)),
    "at least one gradient weight": lambda: InitialiserConfig(gradient_weights=(), patient_weights=()),
    "weights must be positive": lambda: InitialiserConfig(gradient_weights=(1e-3, 0.0)),
    "support_shares must lie in (0, 1]": lambda: InitialiserConfig(support_shares=(1.0, 1.5)),
    "thinness must not be negative": lambda: InitialiserConfig(judging_thinness=-1e-3),
    "num_finalists must be 1 or more": lambda: InitialiserConfig(num_finalists=0),
    "num_refined and num_fine must be 1 or more": lambda: InitialiserConfig(num_refined=0),
    "smallest_lead must not be negative": lambda: InitialiserConfig(smallest_lead=-0.1),
    "patient_iterations": lambda: InitialiserConfig(patient_iterations=0),
    "ridges must not be negative": lambda: InitialiserConfig(patient_ridge=-1.0),
    "level_iterations": lambda: InitialiserConfig(level_iterations=0),
    "noise_variance must be positive": lambda: InitialiserConfig(noise_variance=0.0),
    "at most first_noise_variance": lambda: InitialiserConfig(noise_variance=1e-3, first_noise_variance=1e-4),
    "64": lambda: InitialiserConfig(guess_side=63),
    "sparse_weight": lambda: NonblindConfig(sparse_weight=0.0),
    "tile_side must be 256 or more": lambda: NonblindConfig(tile_side=255),
    "smoothness must be in [0.01, 100], got nan": lambda: NonblindConfig(smoothness=float("nan")),
    "amount must be in [0, 1], got 1.5": lambda: NonblindConfig(amount=1.5),
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


def test_schedules_are_stretched_in_proportion():
    fit = FitConfig(
        num_iterations=100,
        loss_intervals=(LossInterval(0, MSE), LossInterval(20, (("mae", 1.0),))),
        dropout_rate=((0, 0.3), (30, 0.1)),
        decay_steps=(40, 80),
    )
    longer = fit.stretched(1000)
    assert longer.num_iterations == 1000
    assert [interval.start for interval in longer.loss_intervals] == [0, 200]
    assert longer.dropout_rate == ((0, 0.3), (300, 0.1))
    assert longer.decay_steps == (400, 800)
    assert longer.stretched(100) == fit
    # Where changes fall on one step, the later one holds.
    shortest = fit.stretched(1)
    assert shortest.loss_intervals == (LossInterval(0, (("mae", 1.0),)),)
    assert shortest.dropout_rate == ((0, 0.1),)


def test_compression_counts_as_noise_and_more_so_for_kernels():
    packed = Config().for_compressed()
    assert packed.initialiser.smallest_noise_std > packed.smallest_noise_std > 0.0
    assert packed.for_compressed() == packed
    noisy = Config(initialiser=None, fit=FitConfig(), smallest_noise_std=0.02)
    assert noisy.for_compressed() == noisy


def test_only_a_config_that_estimates_no_kernel_needs_one():
    without = FitConfig(kernel_generator=None)
    assert Config(initialiser=None, fit=without).needs_kernel
    assert not Config(fit=without).needs_kernel
    assert not Config(initialiser=None, fit=FitConfig()).needs_kernel


class TestStopped:
    fit = FitConfig(num_iterations=1000)

    def test_usual_values_follow_the_length(self):
        assert self.fit.stopped("error").stopping == StoppingConfig("error", patience=30, from_step=300)
        assert self.fit.stopped("variance").stopping == StoppingConfig(
            "variance", patience=StoppingConfig.window, from_step=300
        )
        assert self.fit.stopped("error", patience=5, from_step=7).stopping == StoppingConfig("error", patience=5, from_step=7)

    def test_iterates_do_not_count_while_the_error_leaps_with_the_loss(self):
        late = dataclasses.replace(self.fit, loss_intervals=(LossInterval(0, MSE), LossInterval(250, (("mae", 1.0),))))
        assert late.stopped("error").stopping.from_step == 400

    def test_a_presets_own_end_is_changed_or_taken_away(self):
        stopping = dataclasses.replace(self.fit, stopping=StoppingConfig(patience=9, from_step=50))
        assert stopping.stopped(None) == stopping
        assert stopping.stopped(None, patience=3).stopping == StoppingConfig(patience=3, from_step=50)
        assert stopping.stopped("off").stopping is None
        assert stopping.stretched(100).stopping == StoppingConfig(patience=9, from_step=5)

    def test_values_of_no_end_are_refused(self):
        with pytest.raises(InputError, match="choose a stopping criterion"):
            self.fit.stopped(None, patience=3)
        with pytest.raises(InputError, match="stopping is off"):
            self.fit.stopped("off", patience=3)
        with pytest.raises(InputError, match="unknown stopping criterion"):
            self.fit.stopped("loss")
        with pytest.raises(InputError, match="fits no deep prior"):
            Config().override(stopping="error")


class TestOverride:
    config = Config(name="mine", fit=FitConfig(num_iterations=100, image_learning_rate=0.5), kernel_size=9)

    def test_nothing_given_changes_nothing(self):
        assert self.config.override() == self.config

    def test_what_is_given_is_replaced_and_all_else_kept(self):
        changed = self.config.override(kernel_size=21, num_iterations=7, num_restarts=3, final="sparse")
        assert (changed.kernel_size, changed.num_restarts, changed.final) == (21, 3, "sparse")
        assert changed.fit == self.config.fit.stretched(7)
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
