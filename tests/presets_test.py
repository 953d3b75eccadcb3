import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import deblur
from jaxdeblur.config import Config
from jaxdeblur.presets import PRESETS
from jaxdeblur.schedules import learning_rate


def test_presets_go_by_their_own_names_and_cannot_be_changed():
    assert {"fast", "selfdeblur"} <= set(PRESETS)
    for name, preset in PRESETS.items():
        assert isinstance(preset, Config)
        assert preset.name == name
        hash(preset)
    with pytest.raises(TypeError):
        PRESETS["mine"] = Config()


def test_the_default_finds_the_kernel_size_by_itself():
    assert PRESETS["fast"].kernel_size is None
    assert deblur.__defaults__ == (PRESETS["fast"],)


def test_selfdeblur_is_as_published():
    """Ren et al., CVPR 2020, and its public code for grey images."""
    preset = PRESETS["selfdeblur"]
    fit = preset.fit
    assert preset.initialiser is None
    assert preset.final == "generator"
    assert fit.num_iterations == 5000
    assert [(interval.start, interval.terms) for interval in fit.loss_intervals] == [
        (0, (("mse", 1.0),)),
        (1000, (("one_minus_ssim", 1.0),)),
    ]
    rates = [float(learning_rate(fit.image_learning_rate, fit)(jnp.asarray(step))) for step in (0, 1999, 2500, 3500, 4500)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 5e-3, 2.5e-3, 1.25e-3], rtol=1e-5)
    assert fit.kernel_learning_rate == 1e-4
    image, kernel = fit.image_generator, fit.kernel_generator
    assert (image.num_scales, image.channels, image.skip_channels, image.latent_channels) == (5, 128, 16, 8)
    assert image.non_local
    assert (kernel.name, kernel.latent_size, kernel.hidden_sizes) == ("mlp", 200, (1000,))
    assert fit.input_noise_std == 0.001
